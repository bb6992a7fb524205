"""The classifier, and the folder that it travels in: pure torch, which is imported when a name is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

from pneumo_ray.model.config import ARCHITECTURES, ModelConfig
from pneumo_ray.model.trunks import Trunk, register_trunk

if TYPE_CHECKING:
    from pneumo_ray.model.bundle import Bundle, load_bundle, save_bundle
    from pneumo_ray.model.network import PneumoniaNet, build_model
    from pneumo_ray.model.preprocessing import Preprocessing

__all__ = [
    "ARCHITECTURES",
    "Bundle",
    "ModelConfig",
    "PneumoniaNet",
    "Preprocessing",
    "Trunk",
    "build_model",
    "load_bundle",
    "register_trunk",
    "save_bundle",
]

_MODULES = {
    "Bundle": "bundle",
    "PneumoniaNet": "network",
    "Preprocessing": "preprocessing",
    "build_model": "network",
    "load_bundle": "bundle",
    "save_bundle": "bundle",
}


if not TYPE_CHECKING:  # else mypy would accept any name

    def __getattr__(name: str) -> object:
        """Import what needs torch when it is first asked for (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
