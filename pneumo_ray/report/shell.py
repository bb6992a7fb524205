"""What all pages have in common: one HTML file that works offline, in the project's look. Jinja2 escapes all text from data."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files

import jinja2

from pneumo_ray.evaluate.number_text import percent_text
from pneumo_ray.report.wording import Cell, figure_text


def render(name: str, context: Mapping[str, object], scripts: Sequence[str] = (), styles: Sequence[str] = ()) -> str:
    """Return a page.

    Args:
        name: of a file in `template/` that extends `base.html`.
        context: what its text is made of; `title`, `subtitle`, `sections` (anchor and name), `figures` (SVG elements by
            name) and `made` are needed by every page.
        scripts: files in `template/` that follow `common.js`.
        styles: files in `template/` that follow `report.css`.
    """
    folder = files(__package__) / "template"

    def read(file: str) -> str:
        return (folder / file).read_text("utf-8")

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=jinja2.FunctionLoader(read)
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # JSON.parse refuses NaN
    environment.filters |= {"figure": figure_text, "percent": percent_text}
    environment.tests["cell"] = lambda value: isinstance(value, Cell)
    script = "\n".join(map(read, ("common.js", *scripts)))
    css = "\n".join(map(read, ("report.css", *styles)))
    fixed = {"css": css, "js": script, "js_hash": _hash_source(script)}
    return environment.get_template(name).render({**context, **fixed})


def made(addition: str = "") -> str:
    """Return the footer of a page: by which version, and when.

    Args:
        addition: the end of the sentence.
    """
    return f"Research use only. Made by pneumo_ray {version('pneumo_ray')} on {datetime.now(UTC):%Y-%m-%d %H:%M UTC}{addition}."


def _hash_source(script: str) -> str:
    """Return the source expression by which a Content-Security-Policy allows this inline script and no other.

    Args:
        script: the text between its tags, including line breaks.
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
