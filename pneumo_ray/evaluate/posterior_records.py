"""What a comparison of posteriors found, and the sentence that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pneumo_ray.evaluate.map_reliability import MapReliability
from pneumo_ray.evaluate.number_text import number_text
from pneumo_ray.evaluate.sampling_error import SamplingError
from pneumo_ray.evaluate.uncertainty import WITHOUT_PASSES


@dataclass(frozen=True)
class ErrorFinding:
    """How well an uncertainty finds the errors of its own scores."""

    uncertainty: str
    auroc: float | None
    interval: tuple[float, float] | None
    """95 %, by patient."""
    area: float
    """Under the risk-coverage curve; lower is better."""
    errors_referred: float | None
    """Share of the errors among the most uncertain tenth of the images."""
    above_baseline: float | None
    """AUROC less the higher one of the two uncertainties that need no posterior, `WITHOUT_PASSES`."""
    above_baseline_interval: tuple[float, float] | None
    """By patient; 95 % for all comparisons at once."""


@dataclass(frozen=True)
class Shift:
    """How often an uncertainty is larger on an image from elsewhere: AUROC, 0.5 where it does not notice."""

    where: str
    images: int
    auroc: dict[str, float | None]
    """None where no image from elsewhere could be scored."""
    interval: dict[str, tuple[float, float] | None]


@dataclass(frozen=True)
class PosteriorRecord:
    """One set of scores."""

    name: str
    title: str
    images: int
    errors: int
    auc: float | None
    brier: float
    ece: float
    brier_difference: float | None
    """To the first set of scores; negative is better."""
    brier_difference_interval: tuple[float, float] | None
    """By patient; 95 % for all sets at once."""
    found: list[ErrorFinding]
    shifts: list[Shift] = field(default_factory=list)
    maps: MapReliability | None = None
    maps_left_out: bool = False
    """Whether `maps` is missing because one of the two seeds is a member of this set."""
    sampling: SamplingError | None = None
    """Of passes whose closed forms are compared too."""


@dataclass(frozen=True)
class PosteriorComparison:
    """All sets of scores, the first as the reference, and one sentence."""

    images: int
    patients: int
    comparisons: int
    """Differences of error finding that the intervals hold at once."""
    records: list[PosteriorRecord]
    sentence: str


def which_to_use(records: Sequence[PosteriorRecord]) -> str:
    """Return which posterior to use, or that none is better than the plain probability."""
    all_found = [
        (record, found) for record in records for found in record.found if found.uncertainty not in WITHOUT_PASSES
    ]
    known = [(record, found) for record, found in all_found if found.above_baseline is not None]
    if not known:
        return "Whether a posterior helps cannot be measured here, because nothing, or everything, is wrong."
    winners = [(r, f) for r, f in known if f.above_baseline_interval is not None and f.above_baseline_interval[0] > 0]
    record, best = max(winners or known, key=lambda pair: pair[1].above_baseline or 0.0)
    plain = max((f for f in record.found if f.uncertainty in WITHOUT_PASSES), key=lambda f: f.auroc or 0.0)
    measured = f"AUROC {number_text(best.auroc)}, and {number_text(plain.auroc)} of {plain.uncertainty}"
    if winners:
        return f"Use {record.title}: its {best.uncertainty} finds errors better than the plain probability does ({measured})."
    better = [r for r in records if r.brier_difference_interval is not None and r.brier_difference_interval[1] < 0]
    if better:
        chosen = min(better, key=lambda r: r.brier)
        return (
            f"Use {chosen.title} for its probabilities (Brier score {chosen.brier:.4f} after {records[0].brier:.4f}); to find errors "
            f"take {plain.uncertainty}, because no uncertainty finds them better (best: {best.uncertainty} of {record.title}, {measured})."
        )
    return (
        f"Use none of these posteriors to find errors: no uncertainty finds them better than the plain probability does (best: "
        f"{best.uncertainty} of {record.title}, {measured})."
    )
