"""Built-in studies."""

import itertools

from pneumo_ray.config import as_plain, did_you_mean
from pneumo_ray.data.config import BALANCE_MODES
from pneumo_ray.errors import ConfigError
from pneumo_ray.images.augment_config import OPERATIONS, AugmentConfig
from pneumo_ray.model.trunks import find_trunk
from pneumo_ray.tune.study import Range, Settings, Study


def _augmentation_arms() -> dict[str, Settings]:
    """Return the full list, each operation left out, each alone, and none, as the settings that differ from the paper's."""
    full = AugmentConfig()

    def settings(config: AugmentConfig) -> Settings:
        plain, default = as_plain(config), as_plain(full)
        return {f"augment.{name}": value for name, value in plain.items() if value != default[name]}

    def alone(operation: str) -> AugmentConfig:
        config = full
        for other in OPERATIONS:
            if other != operation:
                config = config.without(other)
        return config

    return {
        "full": {},
        **{f"without-{operation}": settings(full.without(operation)) for operation in OPERATIONS},
        **{f"only-{operation}": settings(alone(operation)) for operation in OPERATIONS},
        "none": settings(AugmentConfig.none()),
    }


def _maps_arms() -> dict[str, Settings]:
    """Return one trunk of each kind with dropout at each of its sites, without and with guidance."""
    arms: dict[str, Settings] = {}
    for arch in ("resnet18", "densenet121", "convnext_tiny", "swin_t", "maxvit_t"):
        sites = ("head", "tail", "keys") if find_trunk(arch).has_keys else ("head", "tail")
        for site, (guided, weight) in itertools.product(sites, (("plain", 0.0), ("guided", 1.0))):
            settings = {"model.arch": arch, "model.dropout_site": site, "guide.weight": weight}
            arms[f"{arch}-{site}-{guided}"] = settings
    return arms


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "lr-wd",
            "learning rate and weight decay",
            space={"optim.lr": Range(1e-5, 3e-4, log=True), "optim.weight_decay": Range(1e-6, 1e-2, log=True)},
        ),
        Study("augmentation", "which augmentations are used", arms=_augmentation_arms(), seeds=2, reference="full"),
        Study(
            "balance",
            "how the classes are balanced",
            arms={mode: {"balance": mode} for mode in BALANCE_MODES},
            seeds=3,
            reference="none",
        ),
        Study(
            "finetune",
            "which layers are trained",
            arms={
                "all-layers": {"model.freeze": "none"},
                "last-stage": {"model.freeze": "early"},
                "head-only": {"model.freeze": "backbone"},
            },
            seeds=3,
        ),
        Study(
            "architecture",
            "the network",
            arms={
                arch: {"model.arch": arch}
                for arch in (
                    "resnet50",
                    "resnet18",
                    "resnet34",
                    "densenet121",
                    "vgg16",
                    "inception_v3",
                    "efficientnet_b0",
                )
            },
            seeds=2,
        ),
        Study(
            "dropout",
            "rate and site of the dropout",
            arms={
                f"{site}-{rate}": {"model.dropout": rate, "model.dropout_site": site}
                for site, rate in itertools.product(("head", "tail"), (0.2, 0.5, 0.7))
            },
            seeds=2,
            reference="head-0.5",
            uncertainty=True,
        ),
        Study("labels", "which training images are left out, to find doubtful labels", arms={"left-out": {}}, folds=5),
        Study(
            "maps",
            "trunk, site of the dropout, and guidance",
            arms=_maps_arms(),
            seeds=2,
            reference="resnet18-head-plain",
            uncertainty=True,
        ),
    )
}
"""Built-in studies by name."""


def find_study(name: str) -> Study:
    """Return a built-in study.

    Raises:
        ConfigError: naming the nearest one, if there is none of this name.
    """
    if name not in STUDIES:
        raise ConfigError(f"there is no study {name!r}{did_you_mean(name, STUDIES)} (known: {', '.join(STUDIES)})")
    return STUDIES[name]
