"""Shared by all tests: one small Ray cluster, a small phantom archive, and where the real radiographs are."""

import os
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

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
