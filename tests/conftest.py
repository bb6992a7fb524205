"""Shared by all tests: one small Ray cluster, a small phantom archive, an S3 server, and where the real radiographs are."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers have the environment that Ray began with, so the keys to the S3 server on loopback are there before it.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}

import pytest

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

    from pneumo_ray.data.pipeline import quiet_ray_data

    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", log_to_driver=False)
    quiet_ray_data()
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory) -> Path:
    """80 phantom radiographs in Kermany layout."""
    from pneumo_ray.data.phantom import PhantomConfig, write_phantom_archive

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
