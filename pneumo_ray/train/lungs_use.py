"""What a run does with the lungs that its manifest knows: how images are fitted, whether evidence is guided."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pneumo_ray.console import log
from pneumo_ray.data.lungs import has_lungs, lung_boxes, lung_fingerprint
from pneumo_ray.errors import ConfigError
from pneumo_ray.images.fit import AUTO, OF_LUNGS, Fit
from pneumo_ray.model.network import map_size
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.lung_maps import LungMaps


@dataclass(frozen=True)
class LungUse:
    """How the lungs of the training images are used."""

    fit: Fit
    maps: LungMaps | None
    """Makes the masks of tickets; None where no image has one."""
    guided: bool
    """The loss includes the share of the evidence outside the lungs."""
    fingerprint: str | None
    """Of the lungs, where the training depends on them."""
    sentences: tuple[str, ...]
    """For the log."""

    def announce(self) -> None:
        """Log the sentences."""
        for sentence in self.sentences:
            log(sentence)


def decide_lungs(config: TrainConfig, manifest: pa.Table, train: pa.Table) -> tuple[TrainConfig, LungUse]:
    """Decide `data.fit`, and what is done where the manifest knows no lungs.

    Args:
        config: of the run.
        manifest: all of its rows.
        train: the training rows.

    Returns:
        The config with the fit that is taken in the place of `auto`, and how lungs are used.

    Raises:
        ConfigError: if the input is to show the lungs, and no training image has any.
    """
    known = has_lungs(train)
    boxes = sum(box is not None for box in lung_boxes(train))
    wanted = config.data.fit
    fit: Fit = wanted if wanted != "auto" else AUTO if boxes else "squash"
    if fit in OF_LUNGS and not boxes:
        raise ConfigError(
            f"--data.fit {fit} needs lungs, and the manifest has none of the training images; run jobs/prepare.py with "
            "--lungs found, or give --data.fit pad"
        )
    config = replace(config, data=replace(config.data, fit=fit))
    maps = None
    if has_lungs(manifest).any():
        size, data = map_size(config.model, config.data.image_size), config.data
        maps = LungMaps(size, data.image_size, fit, data.margin, config.guide.target)
    guided, replaced = (
        used and bool(known.any()) for used in (config.guide.weight > 0, config.augment.outside != "none")
    )
    of_lungs = lung_fingerprint(manifest) if guided or replaced or fit != "squash" else None
    return config, LungUse(fit, maps, guided, of_lungs, _sentences(config, fit, known))


def _sentences(config: TrainConfig, fit: Fit, known: NDArray[np.bool_]) -> tuple[str, ...]:
    """Return what the log says of the lungs.

    Args:
        config: of the run.
        fit: that is taken.
        known: bool [n], whether a training image has plausible lungs.
    """
    sentences = [f"input: {fit}"] if fit != "squash" else []
    uses = {"guide.weight": config.guide.weight > 0, "augment.outside": config.augment.outside != "none"}
    options = [name for name, used in uses.items() if used]
    if known.any():
        if options or fit in OF_LUNGS:
            sentences.append(f"lungs: known of {np.count_nonzero(known):,} of {len(known):,} training images")
    elif options:
        sentences.append(
            f"warning: --{' and --'.join(options)} change nothing, because the manifest knows no lungs of the training "
            "images; run jobs/prepare.py with --lungs found"
        )
    return tuple(sentences)
