"""A figure as a file and as an element of a page."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pneumo_ray.evaluate.drawing import INK, house_style, save_figure


def figure() -> Figure:
    with house_style():
        made = Figure(figsize=(3, 2))
        axes = made.subplots()
        axes.plot([0, 1], [0, 1], label="a < b & c")
        axes.legend()
    return made


def test_figure_files_are_reproducible(tmp_path):
    save_figure(figure(), str(tmp_path), "one")
    first = (tmp_path / "one.svg").read_bytes()
    save_figure(figure(), str(tmp_path), "one")
    assert (tmp_path / "one.svg").read_bytes() == first
    assert np.asarray(Image.open(tmp_path / "one.png")).std() > 1
    assert INK.encode() in first


def test_embedded_figures_are_safe_on_a_page(tmp_path):
    one, two = (save_figure(figure(), str(tmp_path), name) for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for used in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', one):
        assert (used[0] or used[1]) in ids[0]
    assert INK not in one
    assert "currentColor" in one
    assert "a &lt; b &amp; c" in one
    root = ElementTree.fromstring(one)
    assert "width" not in root.attrib
    assert root.attrib["viewBox"]
