"""Words from other people's files reach the page as text, wherever they come from; read here as a browser reads them."""

from html.parser import HTMLParser

import pyarrow.parquet as pq

from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.report.job import write_evaluation

ATTACK = (
    "<img src=x onerror=broken()>\"'><svg onload=broken()></script></style></title>--><script>broken()</script>{{7*7}}"
)


class Reader(HTMLParser):
    """Counts the elements that run something, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.handlers: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script" and dict(attrs).get("type", "") in ("", "text/javascript", "module")
        self.handlers += [f"{tag} {name}={value}" for name, value in attrs if name.startswith("on")]
        self.handlers += [
            f"{tag} {name}={value}" for name, value in attrs if str(value).strip().startswith("javascript:")
        ]

    def handle_data(self, data):
        self.text += data


def hostile(value: object) -> object:
    """The same JSON with the attack at the end of every text but the ones that are looked up."""
    if isinstance(value, dict):
        return {key: hostile(part) for key, part in value.items()} | {f"more {ATTACK}": ATTACK}
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return f"{value}{ATTACK}" if isinstance(value, str) else value


def test_no_word_of_a_file_becomes_markup(drawn, write_scores, write_truth, tmp_path):
    label, logit = drawn
    names = [f"{ATTACK}{i}.jpg" for i in range(len(label))]
    run = {
        "config": hostile({"passes": 20, "model": "nowhere/model"}),
        "model": hostile({"architecture": "resnet18", "provenance": {"data": "somewhere", "config": {"epochs": 3}}})
        | {"hash": "m", "operating_point": {"threshold": 0.4, "rule": ATTACK}}
        | {"preprocessing": {"image_size": 56, "resize_size": 64, "mean": [0.5], "std": [0.2]}},
        "versions": hostile({"pneumo_ray": "0.1.0"}),
    }
    scores = write_scores(tmp_path / "scores", logit, run=run, names=names)
    part = scores / "part-000000.parquet"
    table = pq.read_table(part)
    column = table.schema.get_field_index("error")
    errors = [None if error is None else f"empty: {ATTACK}" for error in table["error"].to_pylist()]
    table = table.set_column(column, table.schema.field(column), [errors])
    pq.write_table(table, part)
    device = [f"{ATTACK}{i % 3}" for i in range(len(label))]
    truth = write_truth(
        tmp_path / "m.parquet", label, names=names, pictures=tmp_path / "p", **{f"device {ATTACK}": device}
    )
    write_evaluation(EvaluateConfig(manifest=str(truth), scores=str(scores), out=str(tmp_path / "out")))
    page = (tmp_path / "out" / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.handlers == []
    assert reader.scripts == 1, "the page has one script of its own"
    assert "<img src=x" not in page
    assert reader.text.count(ATTACK) > 10, "the words are there, as text"
    for figure in (tmp_path / "out" / "figures").glob("*.svg"):
        assert "<script" not in figure.read_text()
        assert "<img" not in figure.read_text()
