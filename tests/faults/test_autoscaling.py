"""A cluster that starts with nothing and grows for those who ask: Ray's autoscaler, with nodes on this machine."""

import json
import os


def test_jobs_bring_up_the_nodes_that_they_need(nodes, phantom_archive, phantom_run, model, tmp_path, monkeypatch):
    machine = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True}
    described = {
        "cluster_name": "fake",
        "max_workers": 2,
        "provider": provider | {"disable_launch_config_check": True, "foreground_node_launch": True},
        "available_node_types": {"cpu": machine, "ray.head.default": head},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {},
        **{name: {} for name in ("docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "initialization_commands", "rsync_exclude", "rsync_filter")},
        **{f"{name}setup_commands": [] for name in ("", "head_", "worker_")},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
        "file_mounts_sync_continuously": False,
    }
    (tmp_path / "cluster.json").write_text(json.dumps(described))
    for name, value in {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    nodes.port, nodes.address = 6379, "127.0.0.1:6379"  # where Ray's provider of local nodes looks for the head
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
