"""Grad-CAM, its uncertainty and the zones that it is measured in: pure torch."""

from pneumo_ray.explain.bayes import BayesGradCAM
from pneumo_ray.explain.explanation import Explanation
from pneumo_ray.explain.zones import ZONES, zone_operator

__all__ = ["ZONES", "BayesGradCAM", "Explanation", "zone_operator"]
