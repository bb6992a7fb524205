"""A Laplace posterior of the head as a bundle holds it: the factor of its covariance as safetensors, and what was fitted under it."""

from dataclasses import dataclass, field, fields

import safetensors.torch
from torch import Tensor

from pneumo_ray.errors import ModelError
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.records import JsonObject

_FACTOR = "factor"


@dataclass(frozen=True, eq=False)
class StoredPosterior:
    """A normal distribution of the head's weights around those of the network, with a calibration and a threshold of its own.

    Probabilities are means over a posterior, so a calibration belongs to the posterior that it was fitted under.
    """

    factor: Tensor
    """C, float32 [K + 1, K + 1]: the covariance is `C C'`; the last row is the bias."""
    prior_precision: float
    """Of the normal prior, found by marginal likelihood."""
    images: int
    """Training images that it was fitted on."""
    temperature: float
    """Calibrated probability of a sample = sigmoid(logit / temperature + intercept)."""
    intercept: float
    operating_point: JsonObject
    """As that of the bundle."""
    default: bool = False
    """Scoring takes this posterior where none is asked for, instead of the dropout."""
    facts: JsonObject = field(default_factory=dict)
    """Plain JSON values: log marginal likelihood, effective number of parameters, measures on validation."""

    def __post_init__(self) -> None:
        """Refuse what gives no probability.

        Raises:
            ModelError: if the calibration cannot work, or the factor is not square.
        """
        Calibration(self.temperature, self.intercept)
        if self.factor.ndim != 2 or self.factor.shape[0] != self.factor.shape[1]:
            raise ModelError(f"the factor of a posterior must be a square matrix, got {list(self.factor.shape)}")

    @property
    def calibration(self) -> Calibration:
        """How raw logits become probabilities under this posterior."""
        return Calibration(self.temperature, self.intercept)

    def packed(self) -> tuple[JsonObject, bytes]:
        """Return the facts for model.json and the bytes of the file beside it; the same values give the same bytes."""
        described = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != _FACTOR}
        factor = self.factor.detach().float().cpu().contiguous()
        return described, safetensors.torch.save({_FACTOR: factor})

    @classmethod
    def unpacked(cls, described: JsonObject, content: bytes, num_channels: int) -> "StoredPosterior":
        """Return what `packed` wrote.

        Args:
            described: the facts.
            content: of the file.
            num_channels: K of the network.

        Raises:
            ModelError: if it is of another network, or a value cannot be.
            KeyError, TypeError, SafetensorError: if something is missing or foreign.
        """
        factor = safetensors.torch.load(content)[_FACTOR]
        if list(factor.shape) != [num_channels + 1, num_channels + 1] or not bool(factor.isfinite().all()):
            raise ModelError(f"the posterior has a factor of shape {list(factor.shape)} for {num_channels} channels")
        return cls(factor=factor, **described)
