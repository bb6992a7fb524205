import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from dicom_builders import radiograph, ramp, to_bytes

from pneumo_ray.explain import ZONES, BayesGradCAM, Explanation
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing
from pneumo_ray.score.decode import load_shard
from pneumo_ray.score.image_list import SCHEMA
from pneumo_ray.score.schema import ScoreFacts, to_columns


def facts(**changes) -> ScoreFacts:
    base = {
        "map_size": (2, 2),
        "model_hash": "m",
        "config_hash": "c",
        "threshold": 0.5,
        "temperature": 2.0,
        "method": {},
    }
    return ScoreFacts(**(base | changes))


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none"))
    torch.nn.init.normal_(net.classifier.weight)
    return BayesGradCAM(net, temperature=2.0)(torch.randn(5, 3, 64, 64))


def test_failed_rows_are_null_and_in_order(explanation):
    columns = to_columns(explanation, facts(), 1.96, None)
    failures = [None, ("read", "empty: x"), None, None, None, ("decode", "truncated: y"), None]
    table = facts().table(list("abcdefg"), failures, columns)
    assert table.schema.equals(facts().schema(), check_metadata=True)
    assert table["status"].to_pylist() == ["ok", "failed", "ok", "ok", "ok", "failed", "ok"]
    assert np.allclose(table["prob_mean"].drop_null().to_numpy(), explanation.prob_mean)
    assert [value is None for value in table["cam_std"].to_pylist()] == [f is not None for f in failures]
    for row, number in ((0, 0), (2, 1), (6, 4)):
        assert np.allclose(table["cam_mean"][row].as_py(), explanation.cam_mean[number].flatten())
        assert table[f"zone_std_{ZONES[3]}"][row].as_py() == pytest.approx(float(explanation.zone_std[number, 3]))


def test_shards_of_only_failures_keep_the_schema():
    table = facts().table(["a"], [("read", "empty: x")], {})
    assert table.schema.equals(facts().schema(), check_metadata=True)
    assert table["prob_mean"].to_pylist() == [None]


def test_threshold_is_calibrated_and_logit_is_raw():
    """P = sigmoid(logit / T + b): p = 0.9 at T = 2 is the raw logit 2 (ln 9 - b)."""
    assert facts(threshold=0.9).threshold_logit == pytest.approx(2 * np.log(9))
    assert facts(threshold=np.nextafter(1, 2)).threshold_logit == np.inf
    assert facts(threshold=0.9, intercept=0.5).threshold_logit == pytest.approx(2 * (np.log(9) - 0.5))
    assert float(facts(intercept=0.25).schema().metadata[b"intercept"]) == 0.25


def test_predictions_and_referrals_follow_from_the_passes(explanation):
    columns = to_columns(explanation, facts(), 1.96, None)
    assert columns["predicted"].tolist() == [int(p >= 0.5) for p in explanation.prob_mean.tolist()]
    near = (explanation.logit_mean.abs() <= 0.7 * explanation.logit_std).tolist()
    assert to_columns(explanation, facts(), 0.7, None)["refer"].tolist() == near
    assert to_columns(explanation, facts(), 1e9, None)["refer"].all()
    assert not to_columns(explanation, facts(), 0.0, None)["refer"].any()
    nobody = to_columns(explanation, facts(threshold=np.nextafter(1, 2)), 1.96, None)
    assert not nobody["predicted"].any()
    assert not nobody["refer"].any()


def test_the_metadata_says_what_the_maps_are():
    metadata = facts().schema().metadata
    assert json.loads(metadata[b"map_shape"]) == [2, 2]
    assert tuple(json.loads(metadata[b"zones"])) == ZONES
    assert float(metadata[b"threshold"]) == 0.5
    assert facts().schema().field("cam_mean").type == pa.list_(pa.float32(), 4)


def test_notes_stand_before_the_columns_of_the_lungs(explanation):
    columns = to_columns(explanation, facts(), 1.96, None)
    notes = [None, "window_left_one_grey", None, None, None]
    table = facts().table(list("abcde"), [None] * 5, columns, notes=notes)
    assert table.schema.names.index("decode_note") + 1 == table.schema.names.index("crop_x0")
    assert table["decode_note"].to_pylist() == notes


def test_shards_copy_file_notes_to_scores(tmp_path):
    data = to_bytes(radiograph(ramp(), BitsStored=12, WindowCenter="40000", WindowWidth="100"))
    (tmp_path / "a.dcm").write_bytes(data)
    row = {"image_id": "a.dcm", "uri": str(tmp_path / "a.dcm")}
    loaded = load_shard(pa.Table.from_pylist([row], schema=SCHEMA), 0, Preprocessing(64, 73))
    assert loaded["note"].to_pylist() == ["window_left_one_grey"]
