"""The classifier, and the folder that it travels in: pure torch."""

from pneumo_ray.model.bundle import Bundle, Preprocessing, load_bundle, save_bundle
from pneumo_ray.model.network import ARCHITECTURES, ModelConfig, PneumoniaNet, build_model

__all__ = [
    "ARCHITECTURES",
    "Bundle",
    "ModelConfig",
    "PneumoniaNet",
    "Preprocessing",
    "build_model",
    "load_bundle",
    "save_bundle",
]
