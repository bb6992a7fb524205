"""Style and saving of figures: as SVG, as PNG and as an element of a page.

Lines and text have one colour, which a page replaces by the colour of its text, so that a figure is readable on
a dark screen and in print. The other colours differ in lightness, so that they differ in a greyscale print.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.figure import Figure

from pneumo_ray import storage

INK = "#20262e"
NORMAL, PNEUMONIA, THIRD = "#3d85c6", "#d9772b", "#7a5aa6"


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the report's style within the block."""
    with mpl.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": "pneumo_ray", "font.size": 10, "font.family": "sans-serif",
            "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
            "grid.color": INK, "grid.alpha": 0.15, "axes.grid": True, "axes.axisbelow": True,
            "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 9,
        }
    ):  # fmt: skip
        yield


def save_figure(figure: Figure, folder: str, name: str) -> str:
    """Write `name.svg` and `name.png`; return the SVG for the page, without a size and in the text colour.

    Args:
        figure: drawn within `house_style`.
        folder: where.
        name: of the files, without extension, unique on the page.
    """
    with house_style():
        if not figure.get_supxlabel():
            figure.supxlabel("research use only", fontsize=7, x=0.99, ha="right")
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        figure.savefig(png, format="png", dpi=120, facecolor="white")
    text = svg.getvalue()
    storage.write_bytes(storage.join(folder, f"{name}.svg"), text.encode(), durable=False)
    storage.write_bytes(storage.join(folder, f"{name}.png"), png.getvalue(), durable=False)
    return for_page(text, name)


def for_page(svg: str, name: str) -> str:
    """Return an SVG file as an element of a page: unique ids, the page's text colour, full width."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    body = body.replace(INK, "currentColor")
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ', r'<svg aria-hidden="true" \1', body, count=1)
