"""What more labels would bring: widths of the exact intervals against the number of labelled patients."""

from dataclasses import dataclass

from pneumo_ray.site.threshold import Share, SiteThreshold, clopper_pearson
from pneumo_ray.site.triage import fewest_patients

NUMBERS = (50, 100, 200, 400, 800, 1600)
"""Numbers of labelled patients in the table, as far as they are a fifth above the present one, which is there too."""


@dataclass(frozen=True)
class LabelsRow:
    """Widths of the 95 % intervals with this number of labelled patients, if the shares stay as they are."""

    patients: int
    sensitivity_width: float
    specificity_width: float
    triage_possible: bool
    """Whether enough of them are of each class for the promise of triage, even if no error is made."""


def labels_needed(point: SiteThreshold, alpha: float, delta: float) -> tuple[LabelsRow, ...]:
    """Return what more labels would narrow, at the site's own mixture of classes.

    Args:
        point: the threshold, with what it reaches.
        alpha: of the promise.
        delta: of the promise.
    """
    here = point.sensitivity.of + point.specificity.of
    share, least = point.sensitivity.of / here, fewest_patients(alpha, delta)
    rows = []
    for number in sorted({here, *(count for count in NUMBERS if count > 1.2 * here)}):
        ill = max(1, round(share * number))
        well = max(1, number - ill)
        rows.append(
            LabelsRow(number, _width(point.sensitivity, ill), _width(point.specificity, well), min(ill, well) >= least)
        )
    return tuple(rows)


def _width(share: Share, number: int) -> float:
    if number == share.of:
        return share.high - share.low
    low, high = clopper_pearson(round((share.value or 0.0) * number), number)
    return high - low
