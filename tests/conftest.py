"""Shared by all tests: one small Ray cluster, a small phantom archive, an S3 server, and where the real radiographs are."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers have the environment that Ray began with: modules of the tests, and the keys to the S3 server on loopback.
os.environ["PYTHONPATH"] = f"{Path(__file__).parent / 'builders'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}

import pytest

if TYPE_CHECKING:
    import numpy as np
    from orthanc import Orthanc

OWN_RAY = ("test_jobs.py", "test_loopback.py", "test_s3.py", "test_gpu_actors.py")
"""Test files whose processes start a Ray of their own."""
SLOW_FIXTURES = {
    "ray_cluster": "ray",
    "s3_port": "server",
    "orthanc_server": "server",
    "page": "browser",
    "browser": "browser",
}
"""Fixtures that start something, and the marker of every test that needs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it starts, so that `make test-unit` runs those that start nothing."""
    for item in items:
        for fixture, marker in SLOW_FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
        if item.path.parent.name == "faults":
            item.add_marker("faults")
        if item.path.name in OWN_RAY:
            item.add_marker("ray")


REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_archive() -> Path:
    """Kermany's radiographs at 224 pixels, where they are beside the checkout."""
    if not (REAL / "kermany224").is_dir():
        pytest.skip("../shared/data/kermany224, the real radiographs, is not beside this checkout")
    return REAL / "kermany224"


@pytest.fixture(scope="session")
def full_size_archive() -> Path:
    """160 of Kermany's radiographs at their original size, where they are beside the checkout."""
    if not (REAL / "kermany_fullres").is_dir():
        pytest.skip("../shared/data/kermany_fullres, the full-size radiographs, is not beside this checkout")
    return REAL / "kermany_fullres"


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray for all tests that need one and kill nothing; it ends with the session."""
    import ray

    from pneumo_ray.ray_cluster import prepare_environment, quiet_ray_data

    prepare_environment()
    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", log_to_driver=False)
    quiet_ray_data()
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory) -> Path:
    """80 phantom radiographs in Kermany layout."""
    from pneumo_ray.phantom.synthetic import PhantomConfig, write_phantom_archive

    folder = tmp_path_factory.mktemp("phantoms") / "archive"
    return write_phantom_archive(folder, PhantomConfig(num_images=80, image_size=128, difficulty=0.2))


@pytest.fixture(scope="session")
def phantom_run(ray_cluster, phantom_archive, tmp_path_factory) -> Path:
    """The phantom archive prepared, with a cache."""
    from pneumo_ray.data.prepare import PrepareConfig, prepare

    out = tmp_path_factory.mktemp("prepared")
    prepare(PrepareConfig(archive=(str(phantom_archive),), out=str(out), protocol="official", cache=True))
    return out


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory) -> Iterator[int]:
    """A real S3 server (moto) on loopback."""
    pytest.importorskip("moto", reason="moto[server], the S3 server of these tests, is not installed")
    port = free_port()
    with open(tmp_path_factory.mktemp("moto") / "log", "wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(f"moto's server did not start: see {log.name}")
                    time.sleep(0.1)
            yield port
        finally:
            server.terminate()
            server.wait(timeout=10)


@pytest.fixture
def bucket(s3_port: int) -> str:
    """The address of a folder in an empty bucket of the S3 server."""
    from pneumo_ray import storage

    name = f"bucket-{uuid.uuid4().hex}"
    query = f"?scheme=http&endpoint_override=127.0.0.1:{s3_port}&region=us-east-1"
    storage.filesystem(f"s3://{name}{query}&allow_bucket_creation=true")[0].create_dir(name)
    return f"s3://{name}/run{query}"


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory) -> "Iterator[Orthanc]":
    """An Orthanc on loopback for all tests; use `orthanc`, which is empty when a test begins."""
    import orthanc

    if reason := orthanc.missing():
        pytest.skip(reason)
    server = orthanc.Orthanc(tmp_path_factory.mktemp("orthanc"), free_port())
    yield server
    server.stop()


@pytest.fixture
def orthanc(orthanc_server: "Orthanc") -> "Orthanc":
    """An empty Orthanc (see tests/builders/orthanc.py)."""
    orthanc_server.empty()
    return orthanc_server


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A bundle of a ResNet-18 at 64 pixels whose weights are random, and so are its opinions."""
    import torch

    from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, save_bundle

    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none"))
    torch.nn.init.normal_(net.classifier.weight)
    folder = tmp_path_factory.mktemp("bundle") / "model"
    save_bundle(folder, net, preprocessing=Preprocessing(64, 73), temperature=1.5, intercept=0.4)
    return folder


# ---- scores and manifests as files, drawn from a known distribution -------------------------------------------------

N = 240
THRESHOLD, TEMPERATURE = 0.4, 2.0
RUN = {
    "config": {"passes": 20, "model": "nowhere/model"},
    "model": {"hash": "m" * 64, "architecture": "resnet18", "preprocessing": {"image_size": 56, "resize_size": 64,
              "mean": [0.5], "std": [0.2]}},
    "versions": {"pneumo_ray": "0.1.0"},
}  # fmt: skip


def _write_scores(
    folder: Path, logit: "np.ndarray", run: dict | None = None, names: list[str] | None = None, **changes
):
    import numpy as np
    import pyarrow.parquet as pq

    from pneumo_ray.explain import ZONES
    from pneumo_ray.score.schema import NUMBERS, ScoreFacts

    rng = np.random.default_rng(1)
    n = len(logit)
    facts = ScoreFacts((2, 2), "m", "c", THRESHOLD, TEMPERATURE, {"target": "pneumonia"})
    prob = 1 / (1 + np.exp(-logit / TEMPERATURE))
    columns = {name: rng.random(n).astype(np.float32) for name in NUMBERS}
    columns |= {
        "logit": logit.astype(np.float32),
        "prob_mean": prob.astype(np.float32),
        "predicted": (prob >= THRESHOLD).astype(np.int8),
        "refer": np.zeros(n, bool),
        "target": np.ones(n, np.int8),
        "cam_mean": rng.random((n, 4)).astype(np.float32),
        "cam_std": rng.random((n, 4)).astype(np.float32),
        "outside_share": np.full(n, np.nan, np.float32),
    }
    columns |= {f"zone_{kind}_{zone}": rng.random(n).astype(np.float32) for kind in ("mean", "std") for zone in ZONES}
    folder.mkdir(parents=True, exist_ok=True)
    ids = names or [f"{i}.jpg" for i in range(n)]
    table = facts.table([*ids, "bad.jpg"], [None] * n + [("read", "empty: x")], columns | changes)
    pq.write_table(table, folder / "part-000000.parquet")
    (folder / "_run.json").write_text(json.dumps(RUN if run is None else run))
    return folder


def _write_truth(
    path: Path, label: "np.ndarray", n: int = N, names: list[str] | None = None, images: Path | None = None, **columns
):
    import cv2
    import numpy as np
    import pyarrow as pa

    from pneumo_ray.data.manifest import SCHEMA, write_manifest

    ids = names or [f"{i}.jpg" for i in range(n)]
    rows = [
        {
            "image_id": ids[i] if i < n else "bad.jpg",
            "uri": None if images is None else str(images / f"{i}.png"),
            "label": None if i == n or label[i] < 0 else int(label[i]),
            "split": "test" if i < n else None,
            "subtype": None if i == n else (["bacteria", "virus"][i % 2] if label[i] == 1 else "normal"),
            "patient_id": f"p{i // 2}",
            "status": "ok" if i < n else "failed",
        }
        for i in range(n + 1)
    ]
    if images is not None:
        images.mkdir()
        rng = np.random.default_rng(2)
        for i in range(n):
            grey = cv2.resize(rng.integers(0, 255, (8, 8), np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(images / f"{i}.png"), grey)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, pa.array([*values, None]))
    write_manifest(table, str(path))
    return path


@pytest.fixture(scope="session")
def write_scores() -> Callable[..., Path]:
    """Write scores of images 0.jpg, 1.jpg, ... (or `names`) and of one failed file; further columns by keyword."""
    return _write_scores


@pytest.fixture(scope="session")
def write_truth() -> Callable[..., Path]:
    """Write the manifest of the same images, two to a patient, with real PNG files in the folder `images`."""
    return _write_truth


@pytest.fixture(scope="session")
def drawn() -> "tuple[np.ndarray, np.ndarray]":
    """Labels, and logits that tell them apart most of the time."""
    import numpy as np

    rng = np.random.default_rng(0)
    label = (rng.random(N) < 0.6).astype(int)
    return label, 2.5 * rng.normal(size=N) + 3 * label - 1
