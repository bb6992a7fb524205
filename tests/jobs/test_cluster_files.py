"""cluster.yaml and rayjob.yaml, as far as they can be held to something without a cloud."""

import re
import shlex
from pathlib import Path

import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pneumo_ray.cli import parse
from pneumo_ray.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "jobs/rayjob.yaml").read_text())


def test_ray_accepts_the_cluster_file():
    config = prepare_config(CLUSTER)
    validate_config(config)
    nodes = config["available_node_types"]
    assert set(nodes) == {"head", "gpu", "cpu"}
    assert nodes["head"]["resources"] == {"CPU": 0, "GPU": 0}, "the head must run no work"
    assert [nodes[name]["min_workers"] for name in ("gpu", "cpu")] == [0, 0]


def test_both_files_have_the_ray_and_the_python_of_the_lock():
    lock = (ROOT / "requirements.lock").read_text()
    assert f"ray=={ray.__version__}\n" in lock or f"ray[data,default,train,tune]=={ray.__version__}" in lock
    assert CLUSTER["docker"]["image"] == f"rayproject/ray:{ray.__version__}-py311-gpu"
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert f"rayproject/ray:{ray.__version__}-py311-gpu" in (ROOT / "jobs/rayjob.yaml").read_text()


def test_the_dashboard_answers_on_the_head_only_and_no_credentials_are_written_down():
    (start,) = [line for line in CLUSTER["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for name in ("cluster.yaml", "jobs/rayjob.yaml"):
        assert not re.search(r"(?i)secret|access_key|password|token", (ROOT / name).read_text())


def test_the_job_has_the_fields_of_its_kind_and_a_command_that_train_takes():
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    spec = RAYJOB["spec"]["rayClusterSpec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert isinstance(group["rayStartParams"], dict)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes words only"
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {entry["name"] for entry in container["env"]} >= {"PNEUMO_STORE"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [(group["minReplicas"], group["replicas"]) for group in spec["workerGroupSpecs"]] == [(0, 0), (0, 0)]
    words = shlex.split(shlex.split(RAYJOB["spec"]["entrypoint"])[2])
    config = parse(TrainConfig, words[words.index("jobs/train.py") + 1 :])
    assert config.scaling.use_gpu
    assert config.scaling.num_workers == 4
