"""A posterior travels with its bundle: bit for bit under the same hash, or not at all."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pneumo_ray.errors import ModelError
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, load_bundle, save_bundle
from pneumo_ray.model.stored_posterior import StoredPosterior

FILE = "posterior.safetensors"


def posterior(seed: int = 0, channels: int = 512) -> StoredPosterior:
    factor = torch.randn(channels + 1, channels + 1, generator=torch.Generator().manual_seed(seed))
    point = {"threshold": 0.3, "rule": "youden"}
    return StoredPosterior(factor, 0.1 + 0.2, 77, 1.7, -0.3, point, True, {"validation": {"auc": 0.9}})


@pytest.fixture(scope="module")
def net() -> PneumoniaNet:
    torch.manual_seed(0)
    return PneumoniaNet(ModelConfig("resnet18", "none"))


@pytest.fixture
def saved(net: PneumoniaNet, tmp_path: Path) -> Path:
    save_bundle(tmp_path / "model", net, preprocessing=Preprocessing(), posterior=posterior())
    return tmp_path / "model"


def test_a_posterior_comes_back_bitwise(saved: Path) -> None:
    bundle, expected = load_bundle(saved), posterior()
    assert bundle.posterior is not None
    assert torch.equal(bundle.posterior.factor, expected.factor)
    assert bundle.posterior.packed() == expected.packed()
    assert json.loads((saved / "model.json").read_text())["format_version"] == 3


def test_the_hash_covers_factor_and_facts(net: PneumoniaNet, saved: Path, tmp_path: Path) -> None:
    others = [None, posterior(1), replace(posterior(), temperature=1.8), replace(posterior(), default=False)]
    hashes = {save_bundle(tmp_path / "other", net, preprocessing=Preprocessing(), posterior=other) for other in others}
    assert len(hashes | {load_bundle(saved).hash}) == 5
    again = save_bundle(tmp_path / "other", net, preprocessing=Preprocessing(), posterior=posterior())
    assert again == load_bundle(saved).hash


def test_a_removed_posterior_leaves_no_file(net: PneumoniaNet, saved: Path) -> None:
    save_bundle(saved, net, preprocessing=Preprocessing())
    assert not (saved / FILE).exists()
    assert load_bundle(saved).posterior is None
    assert json.loads((saved / "model.json").read_text())["format_version"] == 2


def test_a_changed_or_missing_factor_is_noticed(saved: Path) -> None:
    content = bytearray((saved / FILE).read_bytes())
    content[-5] ^= 1
    (saved / FILE).write_bytes(content)
    with pytest.raises(ModelError, match=r"posterior\.safetensors .* is not the file that was saved"):
        load_bundle(saved)
    (saved / FILE).unlink()
    with pytest.raises(ModelError, match=r"posterior\.safetensors: No such file"):
        load_bundle(saved)


def forge(folder: Path, **changes: object) -> None:
    """Change model.json as a forger would, hash included."""
    description = json.loads((folder / "model.json").read_text()) | changes
    del description["hash"]
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    description["hash"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps(description))


def test_a_foreign_posterior_is_refused(saved: Path) -> None:
    original, content = (saved / "model.json").read_text(), (saved / FILE).read_bytes()
    described = json.loads(original)["posterior"]
    small = safetensors.torch.save({"factor": torch.eye(3)})
    infinite = safetensors.torch.save({"factor": torch.full((513, 513), torch.inf)})
    forgeries = (
        (content, {"format_version": 2}),
        (content, {"posterior": described | {"temperature": 0}}),
        (content, {"posterior": described | {"surprise": 1}}),
        (content, {"posterior": []}),
        (small, {"posterior": described | {"sha256": hashlib.sha256(small).hexdigest()}}),
        (infinite, {"posterior": described | {"sha256": hashlib.sha256(infinite).hexdigest()}}),
        (b"pickle", {"posterior": described | {"sha256": hashlib.sha256(b"pickle").hexdigest()}}),
    )
    for data, changes in forgeries:
        (saved / FILE).write_bytes(data)
        forge(saved, **changes)
        with pytest.raises(ModelError) as caught:
            load_bundle(saved)
        assert str(saved) in str(caught.value)
        assert "\n" not in str(caught.value)
        (saved / "model.json").write_text(original)
