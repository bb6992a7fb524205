"""cluster.yaml and rayjob.yaml, as far as they can be held to something without a cloud."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pneumo_ray.config import parse
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


def test_cluster_files_have_the_locked_versions():
    lock = (ROOT / "requirements.lock").read_text()
    assert f"ray=={ray.__version__}\n" in lock or f"ray[data,default,train,tune]=={ray.__version__}" in lock
    assert CLUSTER["docker"]["image"] == f"rayproject/ray:{ray.__version__}-py311-gpu"
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert f"rayproject/ray:{ray.__version__}-py311-gpu" in (ROOT / "jobs/rayjob.yaml").read_text()


def test_the_dashboard_stays_on_the_head():
    (start,) = [line for line in CLUSTER["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for name in ("cluster.yaml", "jobs/rayjob.yaml"):
        assert not re.search(r"(?i)secret|access_key|password|token", (ROOT / name).read_text())


def test_the_job_has_known_fields_and_command():
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


SCHEMA = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())


def test_every_job_key_is_kuberays():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(RAYJOB, SCHEMA)
    assert RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"], "a job whose head takes no work needs workers"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "entryPoint"), "python"),
        (("spec", "backoffLimit"), "3"),
        (("spec", "rayClusterSpec", "autoscalerOptions", "idleTimeoutMinutes"), 5),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxWorkers"), 8),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "serviceAccount_name"), "x"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "enviroment"), []),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "env", 1, "value"), 0),
        (("metadata", "name"), "pneumo_train"),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_wrong_job_keys_and_types_are_found(place, value):
    wrong = copy.deepcopy(RAYJOB)  # the anchors of YAML are shared parts
    node = wrong
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_the_store_survives_all_shells():
    """The submitter's shell takes the entrypoint apart, `ray job submit` joins it again, a shell on the head runs it."""
    entrypoint = RAYJOB["spec"]["entrypoint"].replace("cd /home/ray/pneumo_ray && python", "echo")
    submitted = subprocess.list2cmdline(shlex.split(entrypoint))
    said = subprocess.run(
        submitted, shell=True, capture_output=True, text=True, check=True, env={"PNEUMO_STORE": "s3://b/p"}
    )
    words = said.stdout.split()
    assert words[words.index("--manifest") + 1] == "s3://b/p/first/manifest.parquet"
    assert words[words.index("--out") + 1] == "s3://b/p/first"
