"""Named sets of training options: the paper's, and one for other hospitals and for maps that look at the lungs."""

from typing import Literal, get_args

from pneumo_ray.model.config import is_resnet
from pneumo_ray.records import JsonObject

Recipe = Literal["paper", "robust"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)

_ROBUST: dict[str, tuple[object, object]] = {
    "model.output_stride": (32, 16),
    "model.stages": (4, 3),
    "data.fit": ("squash", "auto"),
    "balance": ("copies", "sampler"),  # copies would give one class alone a second draw of the strong contrast
    "optim.lr": (1e-4, 5e-4),
    "optim.weight_decay": (1e-4, 1e-2),
    "optim.clip_norm": (0.0, 1.0),
    "optim.schedule": ("plateau", "onecycle"),
    "optim.ema": (0.0, 0.995),
    "optim.stop_patience": (5, 30),  # a rate that falls to a plan is not stopped half way
    "loss.smoothing": (0.0, 0.05),
    "guide.weight": (0.0, 1.0),
    "augment.contrast": (0.2, 0.8),
    "augment.gamma": (0.0, 0.4),
    "augment.histogram": (0.0, 0.5),
    "augment.outside": ("none", "blur"),
    "augment.outside_probability": (0.5, 0.3),
    "epochs": (30, 12),
}
"""Options by their dotted names: the paper's value, which is the default of its class, and that of `robust`."""


def recipe_settings(recipe: str, arch: str) -> JsonObject:
    """Return the options that a recipe sets, by their dotted names; those that the recipes share are left to the classes.

    Args:
        recipe: one of `RECIPES`; another name sets nothing, and is refused where the config is made.
        arch: the trunk; one that is no ResNet keeps all of its stages and output stride 32.
    """
    if recipe not in RECIPES:
        return {}
    settings: JsonObject = {option: values[RECIPES.index(recipe)] for option, values in _ROBUST.items()}
    if not is_resnet(arch):
        settings |= {"model.output_stride": 32, "model.stages": 4}
    return settings
