"""The commissioning job: scores and some labels in, site.json and a page out."""

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.evaluate.calibration import reliability_table
from pneumo_ray.evaluate.drawing import save_figure
from pneumo_ray.evaluate.number_text import number_text, percent_text
from pneumo_ray.evaluate.tables import ends_text
from pneumo_ray.report.figures import reliability_figure
from pneumo_ray.report.site_figures import score_figure
from pneumo_ray.report.site_page import render_site
from pneumo_ray.site.commission import Commissioning, commission, facts_of, profile_of, read_site
from pneumo_ray.site.config import CommissionConfig
from pneumo_ray.site.profile import SiteProfile, write_profile
from pneumo_ray.site.threshold import Share
from pneumo_ray.site.triage import Triage


def write_commissioning(config: CommissionConfig) -> SiteProfile:
    """Commission a site and write site.json, site.html and the figures; return what scoring applies.

    Raises:
        PneumoError: if the files do not fit together, or there are too few labels, with the number that is missing.
    """
    scores, run, manifest = read_site(config)
    found = commission(scores, run, manifest, config)
    out = storage.absolute(config.out)
    storage.require_writable(out)
    path = storage.join(out, "site.json")
    profile = write_profile(profile_of(found, scores), facts_of(found, config, run, manifest), path)
    data = found.images.labelled
    tables = {"as the model gives it": data.prob, "recalibrated": found.choice.cross_fitted.prob}
    figures = {
        "reliability": reliability_figure({name: reliability_table(prob, data.label) for name, prob in tables.items()}),
        "scores": score_figure(data, found.point.threshold, found.triage),
    }
    folder = storage.join(out, "figures")
    drawn = {name: save_figure(figure, folder, name) for name, figure in figures.items()}
    page = render_site(found, profile, config, drawn)
    storage.write_bytes(storage.join(out, "site.html"), page.encode("utf-8", "replace"))
    for line in summary(found):
        log(line)
    log(f"wrote {path}; page {storage.join(out, 'site.html')}")
    return profile


def summary(found: Commissioning) -> list[str]:
    """Return the main findings as plain text."""
    data, point = found.images.labelled, found.point
    lines = [
        f"{len(data):,} labelled of {len(found.images.prob):,} images, {data.num_patients:,} patients "
        f"({data.patients_of_class(1):,} with pneumonia)",
        f"  {'calibration':<12}{found.choice.chosen.method.replace('_', ' ')}: cross-fitted log loss "
        f"{found.before['log_loss'].value:.3f} to {found.choice.cross_fitted.log_loss:.3f}",
        f"  {'threshold':<12}{point.threshold:.3f} ({point.rule}): sensitivity {_text(point.sensitivity, point.expected_sensitivity)}, specificity {_text(point.specificity)}; "
        f"the model's own {found.own_threshold:.3f}: {_text(found.sensitivity_before)}, {_text(found.specificity_before)}",
        f"  {'prevalence':<12}{number_text(found.prevalence.value)} ({ends_text((found.prevalence.low, found.prevalence.high))}), {found.prevalence.source}",
    ]
    if isinstance(found.triage, Triage):
        lines.append(
            f"  {'triage':<12}negative below {found.triage.low:.3f}, positive from {found.triage.high:.3f}: calls {percent_text(found.triage.called_share, 0)}"
        )
    else:
        lines.append(f"  {'triage':<12}none: {found.triage.reason}")
    return lines


def _text(share: Share, expected: float | None = None) -> str:
    value = share.value if expected is None else expected
    return "undefined" if value is None else f"{number_text(value)} ({ends_text((share.low, share.high))})"
