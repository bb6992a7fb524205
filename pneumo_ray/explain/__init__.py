"""Grad-CAM, its uncertainty and the zones that it is measured in; torch is imported when a name first needs it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pneumo_ray.explain.bayes import BayesGradCAM
    from pneumo_ray.explain.explanation import Explanation
    from pneumo_ray.explain.zones import ZONES, zone_operator

__all__ = ["ZONES", "BayesGradCAM", "Explanation", "zone_operator"]

_MODULES = {"ZONES": "zones", "BayesGradCAM": "bayes", "Explanation": "explanation", "zone_operator": "zones"}


if not TYPE_CHECKING:  # else mypy would accept any name

    def __getattr__(name: str) -> object:
        """Import what needs torch when it is first asked for (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
