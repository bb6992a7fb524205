"""A cluster that starts with nothing and grows for those who ask: Ray's autoscaler, with nodes on this machine."""

import json
import os

import pytest
from ray.cluster_utils import AutoscalingCluster


@pytest.mark.faults
def test_jobs_bring_up_the_nodes_that_they_need(nodes, phantom_archive, phantom_run, model, tmp_path, monkeypatch):
    kinds = {"cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}}
    described = AutoscalingCluster(
        {"CPU": 0}, kinds
    )._config  # started by `ray start`, because its own start stops others
    (tmp_path / "cluster.json").write_text(json.dumps(described))
    for name, value in {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    nodes.start_head(0, f"--autoscaling-config={tmp_path / 'cluster.json'}")
    wait = "120"
    words = ["--archive", str(phantom_archive), "--model", str(model), "--out", str(tmp_path / "scores")]
    said = nodes.job("jobs/explain.py", *words, "--amp", "off", "--scale.wait-seconds", wait).ends()
    assert "waiting for the cluster: it has 0 CPUs where the job needs 2" in said
    assert "wrote 80 rows" in said
    words = ["--manifest", str(phantom_run / "manifest.parquet"), "--out", str(tmp_path / "run"), "--epochs", "1"]
    words += ["--model.arch", "resnet18", "--model.weights", "none", "--data.image-size", "32", "--batch-size", "16"]
    workers = ["--scaling.num-workers", "3", "--scaling.wait-seconds", wait]
    said = nodes.job("jobs/train.py", *words, *workers).ends()
    assert "waiting for the cluster: it has 2 CPUs where the job needs 3" in said
    assert "epoch   1/1" in said
