"""Scoring of decoded images: batches that fit the device, a compiled trunk where it saves time, columns of scores.

Independent of Ray: used by the actors of the job and for drawing single cases.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pneumo_ray.errors import ClusterError
from pneumo_ray.explain import ZONES, BayesGradCAM, Explanation, zone_operator
from pneumo_ray.explain.ensemble import EnsembleGradCAM
from pneumo_ray.explain.foreign import ForeignGradCAM
from pneumo_ray.explain.masks import group_sizes
from pneumo_ray.explain.posterior import HeadPosterior
from pneumo_ray.explain.target import Target
from pneumo_ray.explain.zones import Box, outside_operator
from pneumo_ray.model import Bundle, ModelConfig, Preprocessing
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.model.compiled import compiled_with_constants
from pneumo_ray.model.memory import is_out_of_memory
from pneumo_ray.model.network import restored
from pneumo_ray.model.precision import amp_dtype, autocast
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.foreign import ForeignSet, ForeignSource
from pneumo_ray.score.model_set import ModelSet
from pneumo_ray.score.schema import ScoreFacts, to_columns
from pneumo_ray.site.profile import read_profile


@dataclass(frozen=True)
class MemberPayload:
    """One network as plain arrays, with its posterior and calibration."""

    config: ModelConfig
    weights: dict[str, np.ndarray]
    posterior: HeadPosterior | None
    """None where its dropout is inside the trunk."""
    calibration: Calibration


@dataclass(frozen=True)
class ModelPayload:
    """The models of a job: they go through the object store once, and workers map their weights without a copy."""

    members: tuple[MemberPayload, ...]
    preprocessing: Preprocessing
    facts: ScoreFacts
    foreign: ForeignSource | None = None
    """A network of others, which every worker makes, in the place of members."""

    fused: bool = False
    """Whether maps are divided among the cells of the stage before."""

    @property
    def takes_images(self) -> bool:
        """Whether the engine is given images: where passes repeat the tails, or need more than the last feature maps."""
        return self.fused or self.foreign is not None or self.members[0].posterior is None

    @classmethod
    def of(cls, models: ModelSet | ForeignSet, config: ExplainConfig) -> Self:
        """Return what a scorer needs of its models and a config whose passes are resolved.

        Raises:
            ModelError: if there is nothing to sample.
        """
        assert config.passes is not None, "the config is resolved"
        facts = ScoreFacts(
            map_size=models.map_size_of(config.maps),
            model_hash=models.hash,
            config_hash=config.config_hash,
            threshold=float(models.operating_point["threshold"]),
            temperature=models.calibration.temperature,
            intercept=models.calibration.intercept,
            method=config.method,
            num_groups=1 if config.passes == "exact" else len(group_sizes(config.passes)),
            site=None if config.site is None else read_profile(config.site),
            support=models.support,
        )
        if isinstance(models, ForeignSet):
            return cls((), models.preprocessing, facts, models.source)
        members = tuple(
            MemberPayload(
                bundle.model.config,
                {name: tensor.numpy() for name, tensor in bundle.model.state_dict().items()},
                models.head_posterior(number),
                models.calibrations[number],
            )
            for number, bundle in enumerate(models.bundles)
        )
        return cls(members, models.preprocessing, facts, fused=config.maps == "fused")

    @classmethod
    def from_bundle(cls, bundle: Bundle, config: ExplainConfig) -> Self:
        """Return the same of a single model."""
        return cls.of(ModelSet.of([bundle], config.posterior), config)


class Explainer:
    """Explains uint8 images with the models of a job on one device."""

    def __init__(self, model: ModelPayload, config: ExplainConfig, device: torch.device) -> None:
        """Build the networks on `device`."""
        self.model, self.config, self.device = model, config, device
        self.dtype = amp_dtype(config.amp, device)
        engines = (
            [_foreign_engine(model.foreign, config, device, self.dtype)]
            if model.foreign is not None
            else [
                BayesGradCAM(
                    restored(member.config, member.weights, device).to(memory_format=torch.channels_last),
                    config.passes,
                    config.seed,
                    temperature=member.calibration.temperature,
                    intercept=member.calibration.intercept,
                    amp_dtype=self.dtype,
                    posterior=member.posterior,
                    maps=config.maps,
                    exact_var=False,  # no column has it
                )
                for member in model.members
            ]
        )
        self.engine = EnsembleGradCAM(engines)
        self.precision = str(self.dtype or torch.float32).removeprefix("torch.")
        self.at_once = config.scale.batch_size or _batch_size(model.preprocessing.image_size, device)
        self.compiled = False
        self._feature_maps = self._trunks

    @property
    def _trunks(self) -> list[Callable[[Tensor], Tensor]]:
        """Trunks of the networks that have one, not compiled."""
        return [engine.net.feature_maps for engine in self.engine.engines if isinstance(engine, BayesGradCAM)]

    def compile(self) -> None:
        """Compile the trunks with the next batch; where that fails, the eager networks go on and `compiled` is False."""
        self.compiled, self._feature_maps = True, [compiled_with_constants(trunk) for trunk in self._trunks]

    def warm_up(self) -> None:
        """Explain a blank batch: compilation and first-time set-up happen here and not at the first image.

        Nothing where the engine takes images: at sites `tail` and `keys` a batch takes seconds.
        """
        if self.model.takes_images:
            return
        size = self.model.preprocessing.image_size
        self.columns(np.zeros((self.at_once, size, size), np.uint8), [None] * self.at_once)

    def columns(
        self, pixels: np.ndarray, boxes: list[Box | None], functionals: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return the columns of the scores of n images.

        Args:
            pixels: uint8 [n, S, S].
            boxes: of the lungs, in pixels; they count in zone mode `box`.
            functionals: float32 [n, NUM_FUNCTIONALS, h * w] of `frame.map_functionals`, NaN where there are no lungs; None
                where nobody looked for any.
        """
        parts: list[dict[str, np.ndarray]] = []
        start = 0
        while start < len(pixels):
            stop = min(start + self.at_once, len(pixels))
            try:
                measures = None if functionals is None else functionals[start:stop]
                parts.append(self._columns(pixels[start:stop], boxes[start:stop], measures))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.at_once == 1:
                    raise ClusterError(
                        "a process that explains has too little memory for one image; repeat the command with fewer "
                        "--scale.num-actors, or where there is more memory"
                    ) from error
                torch.cuda.empty_cache()
                self.at_once = max(1, self.at_once // 2)
                continue
            start = stop
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def explain(self, pixels: np.ndarray, zones: Tensor | None = None, target: Target | None = None) -> Explanation:
        """Return the explanation of at most `at_once` images, uint8 [n, S, S]."""
        target, threshold = target or self.config.target, self.model.facts.threshold_logit
        # Ray's batches are read-only views of shared memory; torch needs writable memory.
        grey = torch.from_numpy(np.ascontiguousarray(pixels).copy()).to(self.device, non_blocking=True)
        size = (grey.shape[1], grey.shape[2])
        if self.model.takes_images:
            x = self.model.preprocessing.normalise(grey, channels_last=True)
            return self.engine(x, target, threshold_logit=threshold, zones=zones)
        number = len(grey)
        if self.compiled and number < self.at_once:  # one shape, so that one compilation serves every batch
            grey = torch.cat([grey, grey.new_zeros(self.at_once - number, *size)])
        with torch.inference_mode(), autocast(self.dtype, self.device):
            x = self.model.preprocessing.normalise(grey, channels_last=True)
            maps = [own[:number] for own in self._maps(x)]
        return self.engine.explain_maps(maps, size, target, threshold_logit=threshold, zones=zones)

    def _maps(self, x: Tensor) -> list[Tensor]:
        try:
            return [feature_maps(x) for feature_maps in self._feature_maps]
        except Exception as error:
            if not self.compiled or is_out_of_memory(error):
                raise
            # For example no compiler on this machine; the eager networks still work.
            self.compiled, self._feature_maps = False, self._trunks
            return [feature_maps(x) for feature_maps in self._feature_maps]

    def _columns(
        self, pixels: np.ndarray, boxes: list[Box | None], measures: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        facts, refer_z, lungs = self.model.facts, self.config.refer_z, None
        if measures is not None:
            measured = torch.from_numpy(measures.copy()).to(self.device)
            of_zones, lungs = measured[:, : len(ZONES)], measured[:, len(ZONES) :]
        if self.config.zones == "lungs":
            if lungs is None:
                of_zones = torch.full((len(pixels), len(ZONES), facts.num_cells), torch.nan, device=self.device)
            return to_columns(self.explain(pixels, of_zones), facts, refer_z, None, lungs)
        if self.config.zones != "box":
            return to_columns(self.explain(pixels), facts, refer_z, None, lungs)
        size = (pixels.shape[1], pixels.shape[2])
        whole = (0, 0, size[1], size[0])
        known = torch.tensor([box is not None for box in boxes])
        zones = torch.stack([zone_operator(facts.map_size, size, box=box or whole) for box in boxes])
        outside = torch.stack([outside_operator(facts.map_size, size, box or whole) for box in boxes])
        e = self.explain(pixels, zones.to(self.device))
        parts = (outside.to(self.device) @ e.cam_mean.flatten(1).unsqueeze(2)).squeeze(2)
        share = (parts[:, 0] / parts[:, 1]).masked_fill(~known.to(self.device), torch.nan)
        columns = to_columns(e, facts, refer_z, share, lungs)
        for name, values in columns.items():
            if name.startswith("zone_"):  # zones of the image would count as zones of the lungs
                inside = known.numpy().reshape(-1, *[1] * (values.ndim - 1))
                columns[name] = np.where(inside, values, np.nan).astype(np.float32)
        return columns


def _foreign_engine(
    source: ForeignSource, config: ExplainConfig, device: torch.device, dtype: torch.dtype | None
) -> ForeignGradCAM:
    """Make the network of others on this device."""
    model = source.make()
    return ForeignGradCAM(
        model.net.to(device),
        source.layer,
        int(config.passes or 0),
        config.seed,
        temperature=model.calibration.temperature,
        intercept=model.calibration.intercept,
        amp_dtype=dtype,
    )


def _batch_size(image_size: int, device: torch.device) -> int:
    """Return the batch size that fits: a ResNet-50 needs about 600 bytes per pixel in float32."""
    free, most = (torch.cuda.mem_get_info(device)[0] * 0.5, 256) if device.type == "cuda" else (2e9, 16)
    return int(max(1, min(most, free / (600 * image_size**2))))
