"""Figures of explanations: the four panels of arXiv 2507.18647, and a contact sheet of many cases.

Maps are shown in logit units on perceptually uniform colours, whose lightness rises with the value, with a white line at
half of the maximum; both are readable in a greyscale print. Maps are upsampled bilinearly, as for the zone means.
Images are shown whole; a dotted box is the network's input, and maps are drawn there.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pneumo_ray.anatomy.lungs import Lungs, Mask, zone_masks
from pneumo_ray.explain.case import WHOLE, Case
from pneumo_ray.explain.zones import ZONES
from pneumo_ray.images.framing import over_image
from pneumo_ray.model.config import CLASSES
from pneumo_ray.records import Row

NOTICE = "research use only · not a medical device"
MEAN_COLOURS, SPREAD_COLOURS = "inferno", "viridis"
INPUT_COLOUR, LUNG_COLOUR = "#56B4E9", "#009E73"
OPAQUE = 0.65
"""Opacity of the highest value of a map that lies over an image."""
_LEGEND = (
    "the patient's right is on the left · white line: half of the maximum · dotted: the network's input · green: lungs"
)


def opacity(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the opacity of a map over an image, 0 to `OPAQUE`, of its values as shares of its highest, 0 to 1.

    It rises fast, so that weak evidence is seen, but with a slope: a root would draw edges around the cells of a map.
    """
    return np.asarray(np.float32(OPAQUE) * level * (2 - level))


def zone_texts(values: NDArray[np.float32]) -> list[str]:
    """Return the means of zones as texts with one number of decimals, two digits of the largest; "-" where there is none."""
    largest = float(np.nanmax(np.abs(values), initial=0, where=np.isfinite(values)))
    decimals = max(0, 1 - math.floor(math.log10(largest))) if largest > 0 else 0
    rounded = [None if math.isnan(value) else round(value, decimals) for value in values.tolist()]
    return ["-" if value is None else f"{value:.{decimals}f}" if value else "0" for value in rounded]


def draw_case(case: Case) -> bytes:
    """Return the four panels as a PNG: radiograph with zones, Grad-CAM, BayesGrad-CAM, uncertainty.

    Raises:
        ValueError: if the case has no `cam`.
    """
    if case.cam is None:
        raise ValueError(f"{case.title} has no map without dropout; draw it with draw_panels")
    figure = Figure(figsize=(15, 4.7), layout="constrained")
    plain, cam, mean, spread = figure.subplots(1, 4)
    _show(plain, case)
    _draw_zones(plain, case)
    has_zones = bool(np.isfinite(case.zone_mean).any())
    plain.set_title(
        "radiograph with BayesGrad-CAM by zone" if has_zones else "radiograph, no zones: no plausible lungs",
        fontsize=10,
    )
    top = float(max(case.cam.max(), case.cam_mean.max()))  # one scale for both, for comparison
    evidence = f"evidence for {CLASSES[case.target]} (logit per cell)"
    for axes, values, name, limit, colours, unit in (
        (cam, case.cam, "Grad-CAM", top, MEAN_COLOURS, evidence),
        (mean, case.cam_mean, "BayesGrad-CAM, mean of the passes", top, MEAN_COLOURS, evidence),
        (
            spread,
            case.cam_std,
            "uncertainty",
            float(case.cam_std.max()),
            SPREAD_COLOURS,
            "standard deviation (logit per cell)",
        ),
    ):
        _show(axes, case)
        shown = _overlay(axes, values, case, limit, colours)
        axes.set_title(name if limit > 0 else f"{name}: nothing", fontsize=10)
        figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02, label=unit).ax.tick_params(labelsize=8)
    figure.suptitle(f"{_shortened(case.title, 90)}\n{_verdict(case)}", fontsize=11)
    figure.supxlabel(f"{NOTICE} · {_LEGEND}", fontsize=8)
    return _png(figure, 110)


def draw_sheet(cases: Sequence[Case], title: str, columns: int = 5) -> bytes:
    """Return a contact sheet as a PNG: each case as radiograph with BayesGrad-CAM above its uncertainty.

    Args:
        cases: at least one.
        title: of the sheet.
        columns: cases side by side.
    """
    columns = min(columns, len(cases))
    rows = math.ceil(len(cases) / columns)
    figure = Figure(figsize=(2.6 * columns, 5.5 * rows + 0.7), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, case in enumerate(cases):
        row, column = divmod(number, columns)
        for axes, values, colours in (
            (grid[2 * row, column], case.cam_mean, MEAN_COLOURS),
            (grid[2 * row + 1, column], case.cam_std, SPREAD_COLOURS),
        ):
            _show(axes, case)
            _overlay(axes, values, case, float(values.max()), colours)
        grid[2 * row, column].set_title(
            f"{number + 1}. {_shortened(case.title, 30)}\n{_verdict(case, short=True)}", fontsize=7
        )
        grid[2 * row + 1, column].set_title(
            f"mean up to {case.cam_mean.max():.2g}, std up to {case.cam_std.max():.2g}", fontsize=7
        )
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(
        f"{NOTICE} · above: BayesGrad-CAM, below: its uncertainty, each on its own scale (logit per cell)", fontsize=8
    )
    return _png(figure, 100)


def draw_panels(cases: Sequence[Case], title: str) -> bytes:
    """Return cases below one another as a PNG, from the scores alone: four panels each.

    Image with zones, BayesGrad-CAM, uncertainty, and the mean less 1.96 standard
    deviations, on the scale of the mean.

    Args:
        cases: at least one.
        title: of the figure.
    """
    height = 3.05 * len(cases) + 0.6
    figure = Figure(figsize=(11, height))
    # Fixed positions: a constrained layout takes as long as the drawing.
    foot, head = 0.25 / height, 1 - 0.75 / height
    figure.subplots_adjust(left=0.01, right=0.99, bottom=foot, top=head, wspace=0.03, hspace=0.17)
    for row, case in zip(figure.subplots(len(cases), 4, squeeze=False), cases, strict=True):
        floor = np.maximum(case.cam_mean - 1.96 * case.cam_std, 0)
        top, spread = float(case.cam_mean.max()), float(case.cam_std.max())
        _show(row[0], case)
        _draw_zones(row[0], case)
        row[0].set_title(f"{_shortened(case.title, 40)}\n{_verdict(case, short=True)}", fontsize=7.5)
        for axes, values, limit, colours, text in (
            (row[1], case.cam_mean, top, MEAN_COLOURS, f"evidence for {CLASSES[case.target]}, up to {top:.2g}"),
            (row[2], case.cam_std, spread, SPREAD_COLOURS, f"standard deviation, up to {spread:.2g}"),
            (row[3], floor, top, MEAN_COLOURS, f"mean - 1.96 sd, up to {floor.max():.2g}"),
        ):
            _show(axes, case)
            _overlay(axes, values, case, limit, colours)
            axes.set_title(f"{text}\n(logit per cell)", fontsize=7.5)
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height)
    notice = f"{NOTICE} · {_LEGEND}"
    figure.supxlabel(notice, fontsize=7.5, y=0.03 / height)
    return _png(figure, 80)


def draw_side_by_side(images: Sequence[Sequence[Case]], names: Sequence[str], title: str) -> bytes:
    """Return images under several posteriors as a PNG: mean maps above standard deviations, a column for each posterior.

    The maps of an image are on one scale for all posteriors, the means on one and the standard deviations on another.

    Args:
        images: at least one; each as a case for every name, which explain one class.
        names: of the posteriors, in the order of the cases.
        title: of the figure.
    """
    figure = Figure(figsize=(2.5 * len(names) + 2.6, 5.3 * len(images) + 0.6), layout="constrained")
    grid = figure.subplots(2 * len(images), len(names) + 1, squeeze=False)
    for number, cases in enumerate(images):
        plain, blank = grid[2 * number, 0], grid[2 * number + 1, 0]
        _show(plain, cases[0])
        truth = "" if cases[0].label is None else f"\ntruth: {CLASSES[cases[0].label]}"
        plain.set_title(_shortened(cases[0].title, 34) + truth, fontsize=8)
        blank.set_axis_off()
        for row, kind, colours, what in (
            (grid[2 * number], "cam_mean", MEAN_COLOURS, f"evidence for {CLASSES[cases[0].target]}"),
            (grid[2 * number + 1], "cam_std", SPREAD_COLOURS, "standard deviation"),
        ):
            maps = [getattr(case, kind) for case in cases]
            top = max(float(values.max()) for values in maps)
            for axes, case, name, values in zip(row[1:], cases, names, maps, strict=True):
                _show(axes, case)
                shown = _overlay(axes, values, case, top, colours)
                head = f"{name}\n{_verdict(replace(case, label=None), short=True)}\n" if kind == "cam_mean" else ""
                axes.set_title(f"{head}up to {values.max():.2g}", fontsize=8)
            bar = figure.colorbar(
                shown, ax=row[1:].tolist(), fraction=0.02, pad=0.01, label=f"{what}\n(logit per cell)"
            )
            bar.ax.tick_params(labelsize=7)
            bar.ax.yaxis.label.set_fontsize(8)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(f"{NOTICE} · {_LEGEND}", fontsize=8)
    return _png(figure, 90)


def _show(axes: Axes, case: Case) -> None:
    axes.imshow(case.image, cmap="gray", vmin=0, vmax=255)
    for x0, y0, x1, y1 in case.boxes:
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, ec="white", lw=1.2, ls="--"))
    if case.window != WHOLE:
        x0, y0, x1, y1 = case.input_box
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, ec=INPUT_COLOUR, lw=0.9, ls=":"))
    for lung in () if case.lungs is None else (case.lungs.right, case.lungs.left):
        if lung is not None:
            _outline(axes, lung, case.image.shape)
    rows, columns = case.image.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_axis_off()


def _outline(axes: Axes, mask: Mask, shape: tuple[int, ...]) -> None:
    fine = cv2.resize(mask.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    if fine.min() > 0 or fine.max() < 0.5:
        return
    _line(axes, fine, 0.5, LUNG_COLOUR, 0.7)


def _draw_zones(axes: Axes, case: Case) -> None:
    if case.lung_zones and case.lungs is not None:
        _draw_lung_zones(axes, case, case.lungs)
        return
    rows, columns = case.image.shape
    x0, y0, x1, y1 = case.zone_box or case.input_box
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, columns), min(y1, rows)
    height, width = y1 - y0, x1 - x0
    style: Row = {"color": "white", "lw": 0.7, "alpha": 0.6}
    for third in range(4) if case.zone_box else (1, 2):
        axes.plot([x0 - 0.5, x1 - 0.5], [y0 + third * height / 3 - 0.5] * 2, **style)
    for half in range(3) if case.zone_box else (1,):
        axes.plot([x0 + half * width / 2 - 0.5] * 2, [y0 - 0.5, y1 - 0.5], **style)
    for number in range(len(ZONES)):
        row, column = divmod(number, 2)
        _label_zone(axes, case, number, x0 + (column + 0.5) * width / 2, y0 + (row + 0.5) * height / 3)


def _draw_lung_zones(axes: Axes, case: Case, lungs: Lungs) -> None:
    rows, columns = case.image.shape
    for number, zone in enumerate(zone_masks(lungs)):
        if zone is None:
            continue
        _outline(axes, zone, case.image.shape)
        y, x = np.nonzero(zone)
        _label_zone(
            axes, case, number, (x.mean() + 0.5) / zone.shape[1] * columns, (y.mean() + 0.5) / zone.shape[0] * rows
        )


def _label_zone(axes: Axes, case: Case, number: int, x: float, y: float) -> None:
    text = f"{ZONES[number].replace('_', ' ')}\n{zone_texts(case.zone_mean)[number]}"
    axes.text(
        x, y, text, ha="center", va="center", fontsize=8 if len(text) < 18 else 7, color="white",
        bbox={"facecolor": "black", "alpha": 0.45, "pad": 1.5, "lw": 0},
    )  # fmt: skip


def _overlay(axes: Axes, values: NDArray[np.float32], case: Case, limit: float, colours: str) -> ScalarMappable:
    """Lay a map over an image, the more opaque the larger it is; return what a colour bar needs."""
    top = limit if limit > 0 else 1.0
    fine = over_image(values, case.input_box, (case.image.shape[0], case.image.shape[1]))
    level = np.nan_to_num(fine)
    shown = ScalarMappable(Normalize(0, top), colours)
    painted = shown.to_rgba(level)
    painted[..., 3] = opacity(np.clip(level / top, 0, 1))
    axes.imshow(painted)
    if level.max() > 0:  # outside of the window there is no line, where the map ends
        _line(axes, np.ma.masked_invalid(fine), level.max() / 2, "white", 0.9)
    return shown


def _line(axes: Axes, values: NDArray[np.float32], level: float, colour: str, width: float) -> None:
    """Draw where the values cross a level; a strip of one row or column of pixels has no such line."""
    if min(values.shape) > 1:
        axes.contour(values, levels=[level], colors=colour, linewidths=width)


def _verdict(case: Case, short: bool = False) -> str:
    interval = f"{case.prob_mean:.2f} ({case.prob_low:.2f} to {case.prob_high:.2f})"
    truth = "" if case.label is None else f" · truth: {CLASSES[case.label]}"
    if short:
        return f"p {interval}{truth}"
    called = CLASSES[int(case.prob_mean >= case.threshold)]
    return (
        f"probability of pneumonia {interval}, normal 95 % interval of the passes · called {called} at the threshold {case.threshold:.2f}"
        f"{truth} · mutual information {case.mutual_information:.3f} nats"
    )


def _shortened(text: str, length: int) -> str:
    printable = "".join(character if character.isprintable() else "?" for character in text).replace("$", r"\$")
    return printable if len(printable) <= length else f"...{printable[-length + 3 :]}"


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
