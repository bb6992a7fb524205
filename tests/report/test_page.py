"""The report in a real headless Chromium: what people see, click and type, held against scikit-learn."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.number_text import number_text
from pneumo_ray.report.embedded import threshold_counts
from pneumo_ray.report.job import write_evaluation
from pneumo_ray.report.wording import figure_text

HOSTILE = "<img src=x onerror=window.broken=1>&\"'</script>.jpg"


@pytest.fixture(scope="module")
def report(drawn, write_scores, write_truth, tmp_path_factory) -> Path:
    label, logit = drawn
    folder = tmp_path_factory.mktemp("report")
    names = [HOSTILE, *(f"{i}.jpg" for i in range(1, len(label)))]
    scores = write_scores(folder / "scores", logit, names=names)
    run = json.loads((scores / "_run.json").read_text())
    run["model"]["provenance"] = {"config": {"epochs": 12, "optim": {"lr": 1e-4}}}
    (scores / "_run.json").write_text(json.dumps(run))
    write_evaluation(
        EvaluateConfig(
            manifest=str(write_truth(folder / "m.parquet", label, names=names, images=folder / "pictures")),
            scores=str(scores),
            out=str(folder / "out"),
        )
    )
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def prob(drawn) -> np.ndarray:
    return (1 / (1 + np.exp(-drawn[1] / 2.0))).astype(np.float32).astype(np.float64)


@pytest.fixture
def page(browser, report, watched) -> Iterator[Any]:
    """The report at the width of a desktop; whatever the browser complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    watched(opened)
    opened.goto(report.as_uri())
    opened.wait_for_selector(".case canvas")
    yield opened
    context.close()


def shown(page: Any, name: str) -> str:
    return page.locator(f"#live-{name}").inner_text()


def percent(text: str) -> float:
    """The page rounds to a tenth of a per cent; what is undefined is NaN."""
    return float("nan") if text == "undefined" else float(text.removesuffix(" %"))


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.777, 1.0])
def test_the_slider_says_what_scikit_learn_says(page, drawn, prob, threshold):
    page.locator("#prevalence").fill("10")
    page.locator("#threshold").fill(str(round(1000 * threshold)))
    tn, fp, fn, tp = confusion_matrix(drawn[0], prob >= threshold).ravel().tolist()
    assert [shown(page, name) for name in ("tn", "fp", "fn", "tp")] == [str(count) for count in (tn, fp, fn, tp)]
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    ill, alarm = 0.1 * sensitivity, 0.9 * (1 - specificity)
    missed, cleared = 0.1 * (1 - sensitivity), 0.9 * specificity
    expected = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": (tp + tn) / len(prob),
        "ppv": ill / (ill + alarm) if ill + alarm else np.nan,
        "npv": cleared / (cleared + missed) if cleared + missed else np.nan,
    }
    for name, value in expected.items():
        assert percent(shown(page, name)) == pytest.approx(100 * value, abs=0.0501, nan_ok=True), name
    assert float(shown(page, "alarms")) == pytest.approx(1000 * alarm, abs=0.0501)
    assert float(shown(page, "misses")) == pytest.approx(1000 * missed, abs=0.0501)


def test_the_script_writes_numbers_as_python_does(page):
    for value in (0.0, 0.04, 0.4, 12.34, 99.94, 99.96, 100.0, 999.97):
        for full in (100.0, 1000.0):
            shown_there = page.evaluate("([value, full]) => numberText(value, 1, full)", [value, full])
            assert shown_there == number_text(value, 1, full)
    assert page.evaluate("[percent(0.99951), percent(0 / 0)]") == ["99.95 %", "undefined"]


def test_the_keyboard_moves_the_stored_threshold(page, drawn, prob):
    tn, fp, fn, tp = confusion_matrix(drawn[0], prob >= 0.4).ravel().tolist()
    assert [shown(page, name) for name in ("tn", "fp", "fn", "tp")] == [str(count) for count in (tn, fp, fn, tp)]
    assert "stored" in shown(page, "threshold")
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    assert shown(page, "threshold") == "0.401"
    page.locator("#threshold-number").fill("0.9")
    page.keyboard.press("Tab")
    assert shown(page, "threshold") == "0.900"
    page.locator("#threshold-stored").click()
    assert "0.4000" in shown(page, "threshold")


def test_a_rare_disease_keeps_its_prevalence(write_scores, write_truth, drawn, tmp_path, browser):
    """At 4 in 10,000 the positive predictive value is 0.0004 sens / (0.0004 sens + 0.9996 (1 - spec)), from the first moment on."""
    label, logit = drawn
    write_evaluation(
        EvaluateConfig(
            manifest=str(write_truth(tmp_path / "m.parquet", label, images=tmp_path / "pictures")),
            scores=str(write_scores(tmp_path / "scores", logit)),
            out=str(tmp_path / "out"),
            prevalence=0.0004,
            gallery=0,
        )
    )
    page = browser.new_page()
    page.goto((tmp_path / "out" / "report.html").as_uri())
    tn, fp, fn, tp = (int(shown(page, name)) for name in ("tn", "fp", "fn", "tp"))
    ill, alarm = 0.0004 * tp / (tp + fn), 0.9996 * fp / (fp + tn)
    assert float(page.locator("#prevalence").input_value()) == 0.04
    assert page.evaluate("document.getElementById('prevalence').checkValidity()")
    assert percent(shown(page, "ppv")) == pytest.approx(100 * ill / (ill + alarm), abs=0.0501)
    assert percent(shown(page, "ppv")) > 0
    page.close()


@pytest.mark.parametrize(("typed", "used"), [("150", 100), ("-3", 0), ("", None)])
def test_an_impossible_prevalence_is_ignored(page, typed, used):
    page.locator("#prevalence").fill(typed)
    if used is None:
        assert {shown(page, name) for name in ("ppv", "npv", "alarms", "misses")} == {"undefined"}
    else:
        wrong = 1 - percent(shown(page, "specificity" if used == 0 else "sensitivity")) / 100
        assert float(shown(page, "alarms")) == pytest.approx(1000 * wrong * (used == 0), abs=0.6)
        assert float(shown(page, "misses")) == pytest.approx(1000 * wrong * (used == 100), abs=0.6)
        page.keyboard.press("Tab")
        assert page.locator("#prevalence").input_value() == str(used)


def test_a_threshold_that_cannot_be_is_not_taken(page):
    exact = page.locator("#threshold-number")
    for typed, threshold in (("0.7", "0.700"), ("", "0.700"), ("7", "1.000"), ("-1", "0.000")):
        exact.fill(typed)
        exact.press("Enter")
        page.keyboard.press("Tab")
        assert (shown(page, "threshold"), exact.input_value()) == (threshold, threshold)


def test_screen_readers_get_one_line(page):
    page.evaluate(
        """() => { window.heard = []; new MutationObserver(() => heard.push(document.getElementById('live-line').textContent))
            .observe(document.getElementById('live-line'), { childList: true, characterData: true, subtree: true }); }"""
    )
    assert page.locator("[aria-live] table, [role=status] table, output").count() == 0
    page.locator("#threshold").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("heard") == []
    page.locator("#live-line", has_text="threshold").wait_for(state="attached")
    line = f"threshold 0.405, sensitivity {shown(page, 'sensitivity')}, specificity {shown(page, 'specificity')}"
    assert page.evaluate("heard") == [line]
    assert page.locator("#threshold").get_attribute("aria-valuetext") == "0.405"
    box = page.locator("#live-line").bounding_box()  # read out, not seen
    assert max(box["width"], box["height"]) <= 1


def cards(page: Any) -> list[tuple[str, str, float]]:
    """Name, outcome and probability of the cards, in order."""
    texts = page.locator(".case").all()
    found = []
    for card in texts:
        line = card.locator("p").first.inner_text()
        found.append(
            (
                card.get_attribute("data-id"),
                card.locator(".tag").inner_text(),
                float(re.search(r" p ([\d.]+)", line)[1]),
            )
        )
    return found  # fmt: skip


def test_the_gallery_sorts_and_filters(page, drawn, prob):
    label, _ = drawn
    page.locator("#order").select_option("lowest")
    rising = [p for _, _, p in cards(page)]
    assert rising == sorted(rising)
    page.locator("#order").select_option("highest")
    falling = [p for _, _, p in cards(page)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == pytest.approx(prob.max(), abs=1e-3)
    for outcome in ("true negative", "true positive", "false negative"):
        page.locator(f"input[name=outcome][value='{outcome}']").uncheck()
    page.locator("#p-high").fill("0.6")
    wanted = {i for i in range(len(label)) if label[i] == 0 and 0.4 <= prob[i] <= 0.6}
    assert {outcome for _, outcome, _ in cards(page)} == {"false positive"}
    assert len(wanted) > 2
    assert {name for name, _, _ in cards(page)} == {HOSTILE if i == 0 else f"{i}.jpg" for i in wanted}
    page.locator("#find").fill("nothing is called so")
    assert cards(page) == []
    assert "0 of 0" in page.locator("#count").inner_text()


def test_a_blank_limit_is_none(page):
    everything = page.locator("#count").inner_text()
    for name in ("p-low", "p-high", "mi-low"):
        page.locator(f"#{name}").fill("0.5")
        assert page.locator("#count").inner_text() != everything
        page.locator(f"#{name}").fill("")
        assert page.locator("#count").inner_text() == everything, name


def test_images_without_information_come_last(browser, report, tmp_path):
    def without(found: re.Match) -> str:
        data = json.loads(found[2])
        data["cases"] = data["cases"][:5]
        data["cases"][1] |= {"mi": None, "low": None, "high": None}
        data["cases"][2]["mi"] = 0.0
        return found[1] + json.dumps(data).replace("<", "\\u003c") + found[3]

    block = r'(<script type="application/json" id="data">)(.*?)(</script>)'
    (tmp_path / "page.html").write_text(re.sub(block, without, report.read_text(), flags=re.DOTALL))
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.locator("#order").select_option("uncertain")
    last = page.locator(".case").nth(4).locator("p").first.inner_text()
    assert re.search(r"p \d\.\d{3} · mutual information unknown$", last)
    assert all("to" in page.locator(".case").nth(i).locator("p").first.inner_text() for i in range(4))
    counts = {}
    for limit in ("", "0", "0.000001"):
        page.locator("#mi-low").fill(limit)
        counts[limit] = page.locator(".case").count()
    assert counts == {"": 5, "0": 5, "0.000001": 3}
    page.close()


def test_every_image_says_what_it_is_not_for(page):
    said = page.locator(".case", has_text="research use only").count()
    assert said == page.locator(".case").count() > 0


def test_foreign_scripts_do_not_run(browser, report):
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(report.as_uri())
    page.wait_for_selector(".case canvas")  # its own does
    assert refused == []
    page.evaluate(
        """() => { const added = document.createElement('script'); added.textContent = 'window.flag = 1';
            document.body.append(added); document.body.setAttribute('onclick', 'window.flag = 2'); document.body.click(); }"""
    )
    assert page.evaluate("window.flag") is None
    assert any("Content Security Policy" in text for text in refused)
    assert "script-src 'unsafe-inline'" not in report.read_text()
    page.close()


def test_more_images_come_on_demand_and_are_painted(page):
    assert page.locator(".case").count() == 24
    page.locator("#more").click()
    assert page.locator(".case").count() == 48
    page.locator(".case canvas[width='224']").first.wait_for()
    spread = page.evaluate(
        """() => [...document.querySelectorAll('.case')][0].querySelectorAll('canvas').values().map((canvas) => {
            const seen = new Set(), pixels = canvas.getContext('2d').getImageData(0, 0, 224, 224).data;
            for (let i = 0; i < pixels.length; i += 4) seen.add(`${pixels[i]},${pixels[i + 1]},${pixels[i + 2]}`);
            return [seen.size, [...seen].every((c) => { const [r, g, b] = c.split(','); return r === g && g === b; })];
        }).toArray()"""
    )
    assert [grey for _, grey in spread] == [True, False, False, False]  # a radiograph, and three maps in colour
    assert min(colours for colours, _ in spread) > 20


def test_maps_are_upsampled_like_zone_means(page):
    grid = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    ours = page.evaluate("(m) => Array.from(upsample(m, [3, 4], [0, 0, 1, 1], 224, 224))", grid.ravel().tolist())
    np.testing.assert_allclose(np.array(ours).reshape(224, 224), cv2.resize(grid, (224, 224)), atol=2e-3)


def test_a_map_lies_at_its_window(page):
    """In the middle half of the picture the page shows the map at half its size, and nothing around it."""
    grid = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    ours = page.evaluate(
        "(m) => Array.from(upsample(m, [3, 4], [0.25, 0.25, 0.75, 0.75], 224, 224))", grid.ravel().tolist()
    )
    expected = np.zeros((224, 224), np.float32)
    expected[56:168, 56:168] = cv2.resize(grid, (112, 112))
    np.testing.assert_allclose(np.array(ours).reshape(224, 224), expected, atol=2e-3)


def test_a_table_sorts_by_any_column_both_ways(page):
    table = page.locator("#failures table.sortable")
    column = [head.inner_text() for head in table.locator("th").all()].index("sharpness")

    def values() -> list[float]:
        return [float(row.locator("th, td").nth(column).get_attribute("data-value")) for row in table.locator("tbody tr").all()]  # fmt: skip

    before = values()
    table.locator("th button").nth(column).click()
    assert values() == sorted(before) != before
    table.locator("th button").nth(column).click()
    assert values() == sorted(before, reverse=True)
    assert table.locator("th").nth(column).get_attribute("aria-sort") == "descending"
    table.locator("thead button").first.focus()
    page.keyboard.press("Enter")
    names = table.locator("tbody th[scope=row]").all_inner_texts()
    assert len(names) == len(before)
    assert names == page.evaluate("(names) => [...names].sort((a, b) => a.localeCompare(b))", names)


def test_every_row_with_a_name_has_a_head(page):
    headless = """() => [...document.querySelectorAll('tbody tr')].filter((row) => {
        const first = row.cells[0];
        return first.tagName !== 'TH' || first.scope !== 'row' || !first.textContent.trim();
    }).length"""
    assert page.locator("tbody tr").count() > 30
    assert page.evaluate(headless) == 0
    assert page.evaluate("[...document.querySelectorAll('th')].filter((th) => !th.textContent.trim()).length") == 0


def test_html_in_a_name_is_text(page, report):
    page.locator("#find").fill("onerror")
    assert page.locator(".case h4").all_inner_texts() == [HOSTILE]
    assert page.evaluate("window.broken") is None
    assert "<img src=x" not in report.read_text()


def test_every_image_has_a_text_alternative(page):
    images = page.locator("[role=img], canvas, img").all()
    assert len(images) > 100
    assert all(image.get_attribute("aria-label") for image in images)
    assert page.evaluate("document.documentElement.lang") == "en"
    unnamed = "[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length"
    assert page.evaluate(unnamed) == 0


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_every_screen_and_scheme(browser, report, tmp_path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    luminance = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (luminance[0] < luminance[1]) == (scheme == "dark")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.screenshot(full_page=True)) > 50_000
    context.close()


CONTRASTS = """() => {
    const rgb = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
    const luminance = (colour) => {
        const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (e) => {
        for (; e; e = e.parentElement) { const colour = rgb(getComputedStyle(e).backgroundColor); if (colour[3] === 1) return colour; }
        return [255, 255, 255];
    };
    const found = {};
    for (const e of document.querySelectorAll('body, body *:not(svg *, script, style)')) {
        if (!e.checkVisibility() || !(e.value || [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))) continue;
        const [a, b] = [luminance(rgb(getComputedStyle(e).color)), luminance(behind(e))];
        found[`${e.tagName}.${e.className}`] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }
    return found;
}"""


@pytest.mark.parametrize(("scheme", "theme"), [("light", None), ("dark", None), ("light", "dark"), ("dark", "light")])
@pytest.mark.parametrize("media", ["screen", "print"])
def test_all_text_has_enough_contrast(page, scheme, theme, media):
    """WCAG 2 AA asks for 4.5 to 1; paper is white, whatever the theme of the screen."""
    page.emulate_media(media=media, color_scheme=scheme)
    if theme:
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
    found = page.evaluate(CONTRASTS)
    assert "SPAN.tag false" in found
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
    dark = media == "screen" and (theme or scheme) == "dark"
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") != dark


def test_print_opens_folds_and_fits_paper(page):
    folded = page.locator("details").first
    assert not folded.locator("table").is_visible()
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 less its margins of 12 mm
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.locator("table").is_visible()
    too_wide = (
        "[...document.querySelectorAll('table')].filter((t) => t.getBoundingClientRect().right > innerWidth).length"
    )
    assert page.evaluate(too_wide) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not folded.evaluate("(e) => e.open")


def test_every_sheet_says_research_use_only(page):
    """A foot of a table repeats on every sheet, and keeps its own room there."""
    assert not page.locator(".each-sheet").is_visible()
    page.emulate_media(media="print")
    assert "Research use only" in page.locator(".each-sheet").inner_text()
    styles = page.evaluate("['body', '.each-sheet'].map((s) => getComputedStyle(document.querySelector(s)).display)")
    assert styles == ["table", "table-footer-group"]


def test_print_leaves_the_controls_out(page):
    page.emulate_media(media="print")
    assert not page.locator(".controls").first.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.locator("#discrimination svg").first.is_visible()


def test_the_page_is_one_file(report):
    text = report.read_text()
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]', text)
    assert text.count("Research use only") >= 2
    assert "not available" in text


def test_threshold_counts_by_hand():
    """Of the pneumonias 0.2 and 0.7 lie at or above 0.2, one above; of the normals 0.5 lies at 0.5."""
    ill, well = threshold_counts(np.array([1, 1, 0]), np.array([0.2, 0.7, 0.5]))
    assert (ill[0], ill[200], ill[201], ill[700], ill[701]) == (2, 2, 1, 1, 0)
    assert (well[500], well[501], len(well)) == (1, 0, 1001)


def test_numbers_are_written_for_people():
    written = [figure_text(value) for value in (1234, 0.12345, 0.0, 0.00123, 1e-9, None)]
    assert written == ["1,234", "0.123", "0.000", "0.0012", "1e-09", "undefined"]


def test_pages_exist_without_labels_or_images(write_scores, write_truth, tmp_path):
    """The gallery shows the maps; what needs labels is left out, and said to be."""
    truth = write_truth(tmp_path / "m.parquet", np.full(30, -1), 30, images=tmp_path / "pictures")
    shutil.rmtree(tmp_path / "pictures")
    scores = write_scores(tmp_path / "s", np.linspace(-2, 2, 30))
    write_evaluation(EvaluateConfig(str(truth), str(tmp_path / "out"), str(scores)))
    text = (tmp_path / "out" / "report.html").read_text()
    assert "None of these images has a label" in text
    assert 'id="threshold"' not in text
    assert text.count('"picture": null') == 30


@pytest.mark.parametrize("label", [[0], [1] * 30])
def test_one_class_or_one_image_makes_a_page(write_scores, write_truth, tmp_path, label):
    truth = write_truth(tmp_path / "m.parquet", np.array(label), len(label), images=tmp_path / "pictures")
    scores = write_scores(tmp_path / "s", np.linspace(-3, 3, len(label)))
    write_evaluation(EvaluateConfig(str(truth), str(tmp_path / "out"), str(scores)))
    text = (tmp_path / "out" / "report.html").read_text()
    assert f"There is no {'pneumonia' if label == [0] else 'normal'} image among these" in text
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert len(json.loads(inside, parse_constant=pytest.fail)["cases"]) == len(label)


def test_posteriors_stand_side_by_side(write_scores, write_truth, drawn, tmp_path, browser, watched):
    """Two posteriors of the same images: their tables and their maps, on a page that does not scroll sideways."""
    label, logit = drawn
    scores = [write_scores(tmp_path / name, logit) for name in ("dropout", "laplace", "elsewhere")]
    for folder, posterior in zip(scores, ("dropout", "laplace", "laplace"), strict=True):
        facts = json.loads((folder / "_run.json").read_text())
        facts["config"] = {**facts.get("config", {}), "posterior": posterior, "passes": 20}
        (folder / "_run.json").write_text(json.dumps(facts))
    write_evaluation(
        EvaluateConfig(
            manifest=str(write_truth(tmp_path / "m.parquet", label, images=tmp_path / "pictures")),
            scores=str(scores[0]),
            out=str(tmp_path / "out"),
            posteriors=(str(scores[1]),),
            shifted=(str(scores[2]),),
            gallery=12,
        )
    )
    page = browser.new_page(viewport={"width": 390, "height": 844})
    watched(page)
    page.goto((tmp_path / "out" / "report.html").as_uri())
    assert page.locator("img.sheet").evaluate("image => image.naturalWidth") > 400
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert (tmp_path / "out" / "figures" / "gallery-posteriors.png").exists()
    section = page.locator("#uncertainty")
    assert "Laplace, 20 passes" in section.inner_text()
    assert section.get_by_role("table", name="Uncertainty on images from elsewhere").locator("tbody tr").count() == 1
