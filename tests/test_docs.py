"""The documentation is held to the program: commands parse, links lead somewhere, tables are complete, Python runs."""

import ast
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pneumo_ray.anatomy.lungs import QUALITIES
from pneumo_ray.config import parse, sub_commands
from pneumo_ray.data.inspect import INSPECTED_SCHEMA
from pneumo_ray.data.label_table import ROLES
from pneumo_ray.data.manifest import OPINION_FIELDS
from pneumo_ray.data.names import REASONS
from pneumo_ray.errors import ConfigError, DecodeError, PneumoError
from pneumo_ray.images import dicom_grey
from pneumo_ray.score.decode import ManyFramesError
from pneumo_ray.score.schema import ScoreFacts
from pneumo_ray.train.recipes import RECIPES, recipe_settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
JOBS = tuple(sorted(path.stem for path in (ROOT / "jobs").glob("*.py")))
OPTIONS_OF_OTHERS = {"--address", "--working-dir", "--demo"}
"""Options of `ray job submit` and of docs/images/make.py."""
SHELL_OPERATORS = {"&&", "||", ";", "|", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: bool
    """An HTML comment before it says why it is not run."""

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        if lines[number].startswith("```"):
            end = lines.index("```", number + 1)
            before = next((line for line in reversed(lines[:number]) if line.strip()), "")
            marked = before.startswith("<!-- not run: ") and before.endswith(" -->")
            yield Block(page, number + 1, lines[number][3:], "\n".join(lines[number + 1 : end]), marked)
            number = end
        number += 1


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SNIPPETS = [block for block in BLOCKS if block.language == "python"]


def shell_lines(block: Block) -> list[str]:
    """Return the commands of a block, continued lines joined."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def job_commands(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (job, options) of every `python jobs/X.py ...`, also inside `sh -c '...'`."""
    for position, word in enumerate(words):
        if "python jobs/" in word:
            yield from job_commands(shlex.split(word))
        elif word == "python" and (match := re.fullmatch(r"jobs/(\w+)\.py", words[position + 1])):
            options = words[position + 2 :]
            end = next((i for i, option in enumerate(options) if option in SHELL_OPERATORS), len(options))
            yield match[1], options[:end]


COMMANDS = [
    pytest.param(job, options, id=f"{block.name}-{job}")
    for block in BLOCKS
    if block.language == "bash"
    for line in shell_lines(block)
    for job, options in job_commands(shlex.split(line, comments=True))
]


@cache
def config_of(job: str) -> type:
    """Return the config that a job parses."""
    spec = importlib.util.spec_from_file_location(f"job_{job}", ROOT / "jobs" / f"{job}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # tyro looks there for the source
    spec.loader.exec_module(module)
    return get_type_hints(module.main)["config"]


def stand_in(config: type, folder: Path) -> str:
    """Write a file for `--config` that holds what the config requires."""
    hints = get_type_hints(config)
    required = [f.name for f in fields(config) if f.default is MISSING and f.default_factory is MISSING]
    path = folder / "config.json"
    path.write_text(json.dumps({name: "x" if hints[name] is str else ["x"] for name in required}))
    return str(path)


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def first_column(page: str, heading: str) -> set[str]:
    """Return the names in the first column of the first table below a heading."""
    below = (ROOT / "docs" / page).read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in below.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_pages_have_commands_and_snippets():
    assert len(COMMANDS) > 15
    assert len(SNIPPETS) > 4


@pytest.mark.parametrize(("job", "options"), COMMANDS)
def test_a_documented_command_parses(job, options, tmp_path):
    config = config_of(job)
    if "--config" in options:
        options = list(options)
        options[options.index("--config") + 1] = stand_in(config, tmp_path)
    try:
        parse(config, options)
    except (SystemExit, PneumoError) as error:
        pytest.fail(f"jobs/{job}.py does not accept {shlex.join(options)}: {error}")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=lambda block: block.name)
def test_other_commands_are_make_targets_or_marked(block):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in shell_lines(block):
        words = shlex.split(line, comments=True)
        known = words[0] == "python" and words[1].startswith("jobs/")
        known |= words[0] == "make" and set(words[1:]) <= targets
        assert known or block.not_run or words == ["source", ".venv/bin/activate"], line


@cache
def known_options() -> frozenset[str]:
    """Return every option that `--help` of a job names."""
    printed = io.StringIO()
    for config in {kind for job in JOBS for kind in sub_commands(config_of(job)).values() or [config_of(job)]}:
        with pytest.raises(SystemExit), redirect_stdout(printed):
            parse(config, ["--help"])
    return frozenset({"--help", "--config", *OPTIONS_OF_OTHERS, *re.findall(r"--[\w.-]+", printed.getvalue())})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mentioned_targets_and_options_exist(page):
    code, known = re.findall(r"`([^`]+)`", prose(page)), known_options()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    mentioned = {text.split()[1] for text in code if text.startswith("make ")}
    assert mentioned <= targets
    for text in code:
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", text):
            found = option in known or (option.endswith(".") and any(name.startswith(option) for name in known))
            assert found, f"{page.name} mentions {option}, which no job has"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_resolve(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name} links to {link}, which does not exist"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, which has no such heading"


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: block.name)
def test_a_snippet_compiles_and_its_imports_work(block):
    tree = ast.parse(block.text)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), block.name, "exec"), {})


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "scores.md"], ids=lambda page: page.name)
def test_the_snippet_explains_images(page, model, tmp_path, monkeypatch, capsys):
    shutil.copytree(model, tmp_path / "runs" / "first" / "model")
    monkeypatch.chdir(tmp_path)
    (snippet,) = (block for block in SNIPPETS if block.page == page and "load_bundle(" in block.text)
    found: dict[str, Any] = {}
    exec(compile(snippet.text, snippet.name, "exec"), found)
    explanation = found.get("e") or found["explanation"]
    assert explanation.cam_mean.shape == (4, 2, 2)  # a ResNet at 64 px
    assert "right_upper" in capsys.readouterr().out


def test_the_readme_is_short():
    assert len(README.read_bytes()) < 8_000
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "images").glob("*.webp")) < 400_000


def test_every_column_of_the_scores_is_documented():
    schema = ScoreFacts((7, 7), "", "", 0.5, 1.0, {}).schema()
    names = {re.sub(r"^(zone_mean|zone_std)_.*", r"\1_*", name) for name in schema.names}
    assert first_column("scores.md", "Columns") == names


def test_every_column_of_the_manifest_is_documented():
    documented = first_column("data.md", "Manifest")
    opinions = {field.name for field in OPINION_FIELDS}
    assert set(INSPECTED_SCHEMA.names) | {"folder", "copy_of"} | opinions == documented


def test_every_reason_for_a_failed_row_is_documented():
    def kinds(parent: type[DecodeError]) -> set[str]:
        return {parent.kind}.union(*map(kinds, parent.__subclasses__()))

    assert kinds(DecodeError) - {"decode"} | {ManyFramesError.kind, "unreadable", "archive"} == first_column(
        "data.md", "Files that cannot be read"
    )


def test_every_reason_to_pass_over_is_documented():
    assert first_column("data.md", "What counts as an image") == set(REASONS)


def test_every_note_of_decoding_is_documented():
    notes = {
        dicom_grey.FLAT_WINDOW,
        dicom_grey.BAD_WINDOW,
        dicom_grey.BAD_VOI_LUT,
        dicom_grey.BAD_RESCALE,
        dicom_grey.BAD_MODALITY_LUT,
    }
    assert first_column("data.md", "From stored values to grey") == notes


def test_every_column_of_a_label_table_is_documented():
    assert first_column("data.md", "Label tables") == set(ROLES)


def test_every_quality_of_lungs_is_documented():
    assert first_column("anatomy.md", "Quality") == set(QUALITIES)


def test_every_option_of_the_recipes_is_documented():
    text = (ROOT / "docs" / "training.md").read_text().split("## Recipes\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:4]] for line in text.splitlines() if "| `--" in line]
    paper, robust = (recipe_settings(recipe, "resnet50") for recipe in RECIPES)
    names = {"--" + option.replace("_", "-"): option for option in paper}
    assert [row[0] for row in rows] == list(dict.fromkeys(row[0] for row in rows))
    assert {row[0] for row in rows} == set(names)
    for option, *values in rows:
        for value, settings in zip(values, (paper, robust), strict=True):
            wanted = settings[names[option]]
            word = value.split(" ")[0]
            assert (word if isinstance(wanted, str) else float(word)) == wanted, option


def fields_of(config: object, prefix: str = "--") -> Iterator[tuple[str, object]]:
    """Yield (option, value) of a config or, for a class, of its defaults."""
    for field in fields(config):
        made = field.default if field.default_factory is MISSING else field.default_factory()
        value = made if isinstance(config, type) else getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        yield from fields_of(value, f"{name}.") if is_dataclass(value) else [(name, value)]


@cache
def defaults() -> dict[str, set[object]]:
    """Return what each option is on the command lines of the jobs where nothing but the required is given."""
    found: dict[str, set[object]] = {}
    for job in JOBS:
        for name, kind in sub_commands(config_of(job)).items() or [("", config_of(job))]:
            required = [f"--{f.name}=x" for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
            try:
                config = parse(config_of(job), [*filter(None, [name]), *required])
            except ConfigError:  # it also requires one of several
                config = kind
            for option, value in fields_of(config):
                found.setdefault(option, set()).add(value[0] if isinstance(value, tuple) and value else value)
    return found


def documented_defaults(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (option, default) of tables with a row marked (default) or a column of defaults, and of `--option` (default X)."""
    text = prose(page)
    yield from re.findall(r"`(--[\w.-]+)` \(default ([\w.-]+?)[,)]", text)
    head: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if cells and not head:
            head = cells
        elif not line.startswith("|"):
            head = []
        elif head and (option := re.fullmatch(r"`(--[\w.-]+)`", head[0])) and cells[0].endswith("` (default)"):
            yield option[1], cells[0].split("`")[1]
        elif "default" in head and "option" in head and cells:
            options = re.findall(r"`(--[\w.-]+)`", cells[head.index("option")])
            values = cells[head.index("default")].split(", ")
            yield from zip(options, values, strict=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_defaults_are_those_of_help(page):
    for option, text in documented_defaults(page):
        word = text.strip("`").split(" ")[0]
        value = float(word) if re.fullmatch(r"[\d.]+(e-\d+)?", word) else word
        assert value in defaults()[option], f"{page.name}: {option} is {defaults()[option]}, not {text}"


def test_every_marker_of_tests_is_documented():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    markers = project["tool"]["pytest"]["ini_options"]["markers"]
    assert first_column("contributing.md", "Tests") == {marker.split(":")[0] for marker in markers}


def test_the_tree_names_every_module_and_no_other():
    (tree,) = (b.text for b in BLOCKS if b.page.name == "architecture.md" and b.text.startswith("jobs/"))
    named, folder = set(), ""
    for line in tree.splitlines():
        if match := re.match(r"  (\w+)/ ", line):
            folder = match[1]
        elif match := re.match(r"  (\w+)\.py ", line):
            named.add(match[1])
        elif line.startswith("    "):
            names = re.split(r" {2,}", line.strip())[0].split(", ")
            named |= {f"{folder}/{name}" for name in names if "." not in name and not name.endswith("/")}
    package = ROOT / "pneumo_ray"
    modules = {str(path.relative_to(package).with_suffix("")) for path in package.rglob("*.py")}
    modules = {module for module in modules if not module.endswith("__init__")}
    assert not [module for module in modules if not any(fnmatch(module, name) for name in named)]
    assert not [name for name in named if not any(fnmatch(module, name) for module in modules)]
