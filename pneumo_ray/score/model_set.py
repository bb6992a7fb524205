"""The models of a scoring job: one, or several that are scored as one; what they must share, and their common hash."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pneumo_ray import storage
from pneumo_ray.config import as_plain
from pneumo_ray.data.support import Support
from pneumo_ray.errors import ModelError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.explain.ensemble import common_calibration
from pneumo_ray.explain.fused import finer_step
from pneumo_ray.explain.masks import DEFAULT_PASSES
from pneumo_ray.explain.posterior import DropoutPosterior, HeadPosterior, LaplacePosterior
from pneumo_ray.explain.target import MapKind, Passes, PosteriorName
from pneumo_ray.model import Bundle, Preprocessing, load_bundle
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.model.config import DropoutSite
from pneumo_ray.model.network import map_size
from pneumo_ray.records import JsonObject


@dataclass(frozen=True)
class ModelSet:
    """Bundles that are scored as one model, under one kind of posterior."""

    bundles: tuple[Bundle, ...]
    """In the order of their hashes, so that results do not depend on the order in which they were given."""
    posterior: PosteriorName

    @classmethod
    def of(cls, bundles: Sequence[Bundle], posterior: PosteriorName | None = None) -> "ModelSet":
        """Return the set, with the posterior that was asked for, or that the models have by default.

        Raises:
            ModelError: if a posterior is missing, or the bundles cannot be scored as one.
        """
        ordered = tuple(sorted(bundles, key=lambda bundle: bundle.hash))
        _check_alike(ordered)
        asked = posterior or _default(ordered)
        lacking = sum(bundle.posterior is None for bundle in ordered) if asked == "laplace" else 0
        if lacking:
            which = "the model has" if len(ordered) == 1 else f"{lacking} of {len(ordered)} models have"
            raise ModelError(
                f"{which} no Laplace posterior; fit it with jobs/posterior.py --model MODEL --manifest MANIFEST, or give "
                "--posterior dropout"
            )
        return cls(ordered, asked)

    @property
    def first(self) -> Bundle:
        """The bundle that speaks for what all share."""
        return self.bundles[0]

    @property
    def preprocessing(self) -> Preprocessing:
        """Common to all."""
        return self.first.preprocessing

    @property
    def hash(self) -> str:
        """Hash of a single model, or of the hashes of several (sha256, hex)."""
        if len(self.bundles) == 1:
            return self.first.hash
        return hashlib.sha256("\n".join(bundle.hash for bundle in self.bundles).encode()).hexdigest()

    @property
    def site(self) -> DropoutSite:
        """Of the dropout of all."""
        return self.first.model.config.dropout_site

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns of the maps of all."""
        return map_size(self.first.model.config, self.preprocessing.image_size)

    def map_size_of(self, maps: MapKind) -> tuple[int, int]:
        """Return rows and columns of the maps of all, of the last stage or fused.

        Raises:
            ModelError: if fused maps are asked for and a network has no finer stage, or their sizes differ.
        """
        if maps == "last":
            return self.map_size
        sizes = {finer_step(bundle.model.config, self.preprocessing.image_size)[1] for bundle in self.bundles}
        if len(sizes) > 1:
            raise ModelError(
                "the fused maps of the models differ in size; leave --maps fused out, or score them one by one"
            )
        return sizes.pop()

    @property
    def support(self) -> Support | None:
        """For whom they were made; None where the bundle does not say."""
        return Support.from_plain(self.first.provenance.get("support"))

    def check(self, passes: Passes, seed: int) -> None:
        """Refuse models that have nothing to sample.

        Raises:
            ModelError: if one has.
        """
        for number, bundle in enumerate(self.bundles):
            BayesGradCAM(bundle.model, passes, seed, posterior=self.head_posterior(number))

    @property
    def in_tail(self) -> bool:
        """Whether the passes repeat the tails of the networks."""
        return self.posterior == "dropout" and self.first.model.config.dropout_site != "head"

    @property
    def default_passes(self) -> int:
        """Monte Carlo passes of each member where none are asked for."""
        return DEFAULT_PASSES[self.first.model.config.dropout_site if self.in_tail else "head"]

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """Of each, as fitted under the posterior."""
        return tuple(
            bundle.posterior.calibration if self._is_laplace and bundle.posterior else bundle.calibration
            for bundle in self.bundles
        )

    @property
    def calibration(self) -> Calibration:
        """Common to all."""
        return common_calibration(self.calibrations)

    @property
    def operating_point(self) -> JsonObject:
        """That of a single model; of several, the mean of their thresholds."""
        points = [
            bundle.posterior.operating_point if self._is_laplace and bundle.posterior else bundle.operating_point
            for bundle in self.bundles
        ]
        if len(points) == 1:
            return points[0]
        thresholds = [float(point["threshold"]) for point in points]
        return {"threshold": sum(thresholds) / len(thresholds), "rule": "mean of the members' thresholds",
                "thresholds": thresholds}  # fmt: skip

    def head_posterior(self, number: int) -> HeadPosterior | None:
        """Return the posterior of a member's head; None where its dropout is inside the trunk.

        Raises:
            ModelError: if there is nothing to sample.
        """
        bundle = self.bundles[number]
        if self._is_laplace and bundle.posterior is not None:
            return LaplacePosterior(bundle.posterior.factor)
        return None if self.in_tail else DropoutPosterior(bundle.model.config.dropout)

    def facts(self) -> JsonObject:
        """Return what `_run.json` has of the models."""
        provenance = self.first.provenance
        facts = {
            "hash": self.hash,
            "architecture": self.first.model.config.arch,
            "temperature": self.calibration.temperature,
            "intercept": self.calibration.intercept,
            "preprocessing": as_plain(self.preprocessing),
            "provenance": provenance,
            "posterior": self.posterior,
        }
        if len(self.bundles) > 1:
            facts["members"] = [bundle.hash for bundle in self.bundles]
        return facts

    @property
    def _is_laplace(self) -> bool:
        return self.posterior == "laplace"


def load_models(model: str | tuple[str, ...], posterior: PosteriorName | None = None) -> ModelSet:
    """Read the bundles of a job.

    Args:
        model: one folder or several.
        posterior: that is asked for; None takes the default of the models.

    Raises:
        ModelError: if one is missing or damaged, or they cannot be scored as one.
    """
    folders = (model,) if isinstance(model, str) else model
    if not folders:
        raise ModelError("--model names no folder; give that of a model which jobs/train.py wrote")
    return ModelSet.of([load_bundle(storage.absolute(folder)) for folder in folders], posterior)


def _default(bundles: Sequence[Bundle]) -> PosteriorName:
    """Return the Laplace posterior where every model has it and prefers it or has no dropout, else the dropout."""
    prefer = all(b.posterior is not None and (b.posterior.default or b.model.config.dropout == 0) for b in bundles)
    return "laplace" if prefer else "dropout"


def _check_alike(bundles: Sequence[Bundle]) -> None:
    """Refuse models that are no ensemble.

    Raises:
        ModelError: naming what differs, what is given twice, or how many members are missing.
    """
    first = bundles[0]
    if len({bundle.hash for bundle in bundles}) < len(bundles):
        raise ModelError("--model names a model twice; give every member of an ensemble once")
    trained_on = {(bundle.provenance.get("manifest") or {}).get("fingerprint") for bundle in bundles} - {None}
    shared: dict[str, set[Any]] = {
        "input (image size, fit or margin)": {bundle.preprocessing for bundle in bundles},
        "classes": {bundle.classes for bundle in bundles},
        "site of the dropout": {bundle.model.config.dropout_site for bundle in bundles},
        "training manifest": trained_on,
    }
    for what, values in shared.items():
        if len(values) > 1:
            raise ModelError(f"the models of --model are no ensemble: their {what} differs; score them one by one")
    size = first.preprocessing.image_size
    if len(bundles) > 1 and len({map_size(bundle.model.config, size) for bundle in bundles}) > 1:
        raise ModelError("the models of --model are no ensemble: the size of their maps differs; score them one by one")
    if len(bundles) > 1:
        trained = [(bundle.provenance.get("config") or {}).get("members", 1) for bundle in bundles]
        together = sum(count > 1 for count in trained)
        if together and together < max(trained):
            raise ModelError(
                f"--model names {together} of {max(trained)} members that were trained together; give all of them, as in "
                "--model RUN/trials/*/model"
            )
