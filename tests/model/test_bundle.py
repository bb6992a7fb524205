"""A bundle comes back bit for bit or not at all."""

import copy
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.errors import ConfigError, ModelError, StorageError
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, build_model, load_bundle, save_bundle

FILES = {"model.json", "weights.safetensors"}


@pytest.fixture(scope="module")
def net() -> PneumoniaNet:
    torch.manual_seed(0)
    return build_model(ModelConfig("efficientnet_b0", "none", dropout=0.3, dropout_site="tail", freeze="early"))


@pytest.fixture
def saved(net: PneumoniaNet, tmp_path: Path) -> Path:
    save_bundle(tmp_path / "model", net, preprocessing=Preprocessing(), provenance={"epochs": 3})
    return tmp_path / "model"


def rewrite(folder: Path, **changes: object) -> None:
    """Change model.json as a forger would, hash included."""
    description = json.loads((folder / "model.json").read_text())
    description |= changes
    del description["hash"]
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    description["hash"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps(description))


def test_round_trip_is_bitwise(net: PneumoniaNet, tmp_path: Path) -> None:
    preprocessing = Preprocessing(image_size=96, resize_size=110, mean=(0.1, 0.2, 1 / 3), std=(0.7, 0.8, 0.9))
    point = {"threshold": 0.1 + 0.2, "rule": "youden"}
    provenance = {"versions": {"torch": torch.__version__}, "val_loss": [1e-300, 0.1], "finished": None}
    digest = save_bundle(
        tmp_path / "new" / "model",
        net,
        preprocessing=preprocessing,
        temperature=1.7000000000000002,
        intercept=-0.1,
        operating_point=point,
        provenance=provenance,
    )
    random_state = torch.get_rng_state()
    bundle = load_bundle(str(tmp_path / "new" / "model"))
    assert torch.equal(torch.get_rng_state(), random_state)  # loading draws nothing
    assert bundle.hash == digest
    assert bundle.preprocessing == preprocessing
    assert (bundle.temperature, bundle.intercept) == (1.7000000000000002, -0.1)
    assert bundle.calibration.logit(3.4000000000000004) == 1.9
    assert (bundle.operating_point, bundle.provenance) == (point, provenance)
    assert bundle.classes == ("normal", "pneumonia")
    assert bundle.model.config == net.config
    assert not any(module.training for module in bundle.model.modules())
    assert [p.requires_grad for p in bundle.model.parameters()] == [p.requires_grad for p in net.parameters()]
    expected = net.state_dict()
    assert list(bundle.model.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in bundle.model.state_dict().items())
    assert {path.name for path in (tmp_path / "new").rglob("*")} == FILES | {"model"}


def test_the_hash_is_of_content_only(net: PneumoniaNet, saved: Path, tmp_path: Path) -> None:
    other = copy.deepcopy(net).to(memory_format=torch.channels_last).eval()
    digest = save_bundle(tmp_path / "other", other, preprocessing=Preprocessing(), provenance={"epochs": 3})
    assert digest == load_bundle(saved).hash
    assert all((saved / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in FILES)
    with torch.no_grad():
        other.classifier.bias.add_(1e-3)
    assert digest != save_bundle(tmp_path / "other", other, preprocessing=Preprocessing(), provenance={"epochs": 3})
    assert digest != save_bundle(tmp_path / "other", net, preprocessing=Preprocessing(), provenance={"epochs": 4})


def test_description_is_readable_and_names_no_weights_source(saved: Path) -> None:
    text = (saved / "model.json").read_text()
    assert text.count("\n") > 20
    description = json.loads(text)
    assert description["model"]["weights"] == "none"
    assert description["operating_point"]["threshold"] == 0.5


@pytest.mark.parametrize("position", [3, 100, 1_000_003, -1])
def test_flipped_byte_of_the_weights_is_noticed(saved: Path, position: int) -> None:
    content = bytearray((saved / "weights.safetensors").read_bytes())
    content[position] ^= 1
    (saved / "weights.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.safetensors.*copy"):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"temperature": 1.0', '"temperature": 1.1'),
        ('"epochs": 3', '"epochs": 2'),
        ('"dropout": 0.3', '"dropout": 0.2'),
    ],
)
def test_edited_description_is_noticed(saved: Path, old: str, new: str) -> None:
    text = (saved / "model.json").read_text()
    assert old in text
    (saved / "model.json").write_text(text.replace(old, new))
    with pytest.raises(ModelError, match=r"model\.json.*changed"):
        load_bundle(saved)


@pytest.mark.parametrize("name", sorted(FILES))
def test_truncated_and_missing_files_are_refused(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        (saved / name).write_bytes(whole[:length])
        with pytest.raises(ModelError, match="copy"):
            load_bundle(saved)
    (saved / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}: No such file"):
        load_bundle(saved)


def test_foreign_content_with_valid_hash_is_refused(saved: Path, tmp_path: Path) -> None:
    original = (saved / "model.json").read_text()
    forgeries: tuple[dict[str, object], ...] = (
        {"format": "other"},
        {"format_version": 3},
        {"model": {"arch": "resnet1"}},
        {"model": {"arch": "resnet34"}},
        {"model": {"surprise": 1}},
        {"preprocessing": {"image_size": 0, "resize_size": 1, "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"preprocessing": []},
        {"temperature": 0},
        {"temperature": "1"},
        {"intercept": "0"},
        {"intercept": 1e999},
        {"provenance": "text"},
    )
    for changes in forgeries:
        rewrite(saved, **changes)
        with pytest.raises(ModelError) as caught:
            load_bundle(saved)
        assert str(saved) in str(caught.value)
        assert "\n" not in str(caught.value)
        (saved / "model.json").write_text(original)
    weights = pickle.dumps({"a": 1})
    (saved / "weights.safetensors").write_bytes(weights)
    rewrite(saved, weights_sha256=hashlib.sha256(weights).hexdigest())
    with pytest.raises(ModelError):
        load_bundle(saved)
    for text in ("[]", "null", "[" * 100_000, '{"format": NaN'):
        (saved / "model.json").write_text(text)
        with pytest.raises(ModelError):
            load_bundle(saved)
    with pytest.raises(ModelError):
        load_bundle(tmp_path / "absent")


def test_an_older_bundle_is_replaced_whole(net: PneumoniaNet, saved: Path) -> None:
    save_bundle(saved, net, preprocessing=Preprocessing(image_size=128))
    assert load_bundle(saved).preprocessing.image_size == 128
    assert {path.name for path in saved.parent.rglob("*")} == FILES | {"model"}


def test_other_peoples_files_are_not_replaced(net: PneumoniaNet, saved: Path, tmp_path: Path) -> None:
    (saved / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="choose another folder"):
        save_bundle(saved, net, preprocessing=Preprocessing(image_size=128))
    assert (saved / "thesis.tex").read_text() == "years of work"
    assert load_bundle(saved).preprocessing.image_size == 224
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(StorageError):
        save_bundle(saved / "thesis.tex" / "model", net, preprocessing=Preprocessing())


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), 0.0, -1.0])
def test_unusable_temperature_is_refused_before_anything_is_written(
    net: PneumoniaNet, tmp_path: Path, temperature: float
) -> None:
    with pytest.raises(ModelError, match="temperature"):
        save_bundle(tmp_path / "model", net, preprocessing=Preprocessing(), temperature=temperature)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("intercept", [float("nan"), float("-inf")])
def test_unusable_intercept_is_refused(net: PneumoniaNet, tmp_path: Path, intercept: float) -> None:
    with pytest.raises(ModelError, match="intercept"):
        save_bundle(tmp_path / "model", net, preprocessing=Preprocessing(), intercept=intercept)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, Path("x")])
def test_values_that_json_cannot_hold_are_refused(net: PneumoniaNet, tmp_path: Path, value: object) -> None:
    with pytest.raises(ModelError, match="provenance"):
        save_bundle(tmp_path / "model", net, preprocessing=Preprocessing(), provenance={"value": value})
    assert not list(tmp_path.iterdir())


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_normalise_is_the_textbook_formula(
    shape: tuple[int, int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    channels_last: bool,
    seed: int,
) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    result = Preprocessing(mean=mean, std=std).normalise(torch.from_numpy(grey), channels_last=channels_last)
    expected = (grey[:, None].astype(np.float64) / 255 - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    assert result.dtype == torch.float32
    assert result.shape == (shape[0], 3, *shape[1:])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_normalise_refuses_what_is_not_a_grey_batch() -> None:
    for wrong in (torch.zeros(2, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            Preprocessing().normalise(wrong)


@pytest.mark.parametrize(
    "options", [{"image_size": 300}, {"image_size": 0}, {"std": (0.2, 0.2, 0.0)}, {"mean": (0.5, 0.5)}]
)
def test_preprocessing_that_cannot_work_is_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        Preprocessing(**options)
