"""Bundles and scores of earlier formats stay readable, with the numbers that they had."""

import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.model import load_bundle

FORMATS = Path(__file__).parent / "formats"


def test_a_bundle_of_format_1_is_read(tmp_path):
    shutil.copy(FORMATS / "bundle_1/model.json", tmp_path)
    packed = (FORMATS / "bundle_1/weights.safetensors.xz").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(lzma.decompress(packed))
    bundle = load_bundle(tmp_path)
    assert (bundle.temperature, bundle.intercept) == (1.5, 0.0)
    assert bundle.operating_point == {"threshold": 0.4, "rule": "youden"}
    assert bundle.model(torch.zeros(1, 3, 64, 64)).item() == pytest.approx(0.5)


def test_scores_of_format_1_are_read(tmp_path):
    scores = read_scores(str(FORMATS / "scores_1")).ok()
    assert len(scores.table) == 12
    assert (scores.temperature, scores.intercept, scores.threshold) == (1.5, 0.0, 0.4)
    assert scores.zone_groups() is None
    assert np.array_equal(scores.numbers("prob_mean") >= 0.4, scores.numbers("predicted") == 1)
