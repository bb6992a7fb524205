"""The network's algebra, its two dropout sites, its freezing, and weights from outside."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from networks import ready
from torch import Tensor, nn

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.model import ARCHITECTURES, ModelConfig, PneumoniaNet, build_model

SMALL = ("resnet18", "densenet121", "efficientnet_b0")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small images give threads nothing to share but waiting, which on a busy machine takes most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scratch(arch: str = "resnet18", **options: object) -> PneumoniaNet:
    torch.manual_seed(0)
    return build_model(ModelConfig(arch=arch, weights="none", **options))  # type: ignore[arg-type]


def images(arch: str = "resnet18", num_images: int = 2) -> Tensor:
    size = 96 if arch == "inception_v3" else 64
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(1))


def torchvision_twin(arch: str) -> nn.Module:
    """A torchvision network whose BatchNorm statistics fit its input, so that its maps depend on every layer."""
    torch.manual_seed(2)
    if arch == "inception_v3":  # what inception_v3(weights="DEFAULT") builds around the published file
        twin = torchvision.models.inception_v3(weights=None, transform_input=True, init_weights=False)
    else:
        twin = torchvision.models.get_model(arch, weights=None)
    twin.eval()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        twin(images(arch, num_images=8))
    return twin.eval()


def torchvision_maps(twin: nn.Module, arch: str, x: Tensor) -> Tensor:
    """The input of torchvision's own average pool."""
    if arch == "densenet121":
        return F.relu(twin.get_submodule("features")(x))
    seen: list[Tensor] = []
    handle = twin.get_submodule("avgpool").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        twin(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_signed_map_sums_to_the_unbiased_logit(arch: str) -> None:
    """sum_ij sum_k w_k A_kij / (h w) = w . mean(A) = logit - bias, and every architecture has that head."""
    net = ready(arch, own=True)
    nn.init.constant_(net.classifier.bias, 0.7)
    x = images(arch)
    with torch.no_grad():
        maps = net.feature_maps(x)
        logit = net(x)
        hidden = net.prefix(x)
        before = hidden.clone()
        net.tail(hidden)
    assert logit.shape == (2,)
    assert maps.ndim == 4
    assert maps.shape[:2] == (2, net.classifier.in_features)
    height, width = maps.shape[2:]
    signed = torch.einsum("k,bkij->bij", net.classifier.weight[0], maps) / (height * width)
    terms = (net.classifier.weight[0] * maps.mean((2, 3))).abs().sum(1)
    assert torch.all(terms > 0.1)
    assert torch.all((signed.sum((1, 2)) - (logit - 0.7)).abs() <= 1e-5 * terms)
    # Monte Carlo passes share the prefix's output, so the tail may not write into it.
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weights_fit_both_dropout_sites(arch: str) -> None:
    with torch.device("meta"):
        head = PneumoniaNet(ModelConfig(arch, "none", dropout_site="head"))
        tail = PneumoniaNet(ModelConfig(arch, "none", dropout_site="tail", freeze="early"))
    assert list(head.state_dict()) == list(tail.state_dict())
    assert all(key.startswith(("prefix.", "tail.", "classifier.")) for key in head.state_dict())
    assert head.dropout.p == 0.5
    assert tail.dropout.p == 0.0
    assert [layer.p for layer in head.tail_dropouts()] == [0.0] * len(tail.tail_dropouts())
    assert [layer.p for layer in tail.tail_dropouts()] == [0.5] * (
        1 if arch == "resnet18" else 2 if "resn" in arch else 1
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_trunk_has_all_of_torchvision_but_its_classifier(arch: str) -> None:
    options = {"aux_logits": False, "init_weights": True} if arch == "inception_v3" else {}
    with torch.device("meta"):
        reference = torchvision.models.get_model(arch, weights=None, **options).state_dict()
        net = PneumoniaNet(ModelConfig(arch, "none"))
    trunk = {key.split(".", 1)[1]: value.shape for key, value in net.state_dict().items() if key[0] in "pt"}
    expected = {k: v.shape for k, v in reference.items() if not k.startswith(("fc.", "classifier.", "head."))}
    norm = {"convnext_tiny": "classifier.0", "maxvit_t": "classifier.2"}.get(arch)
    if norm:  # behind the pooling in torchvision, before it here
        expected |= {f"norm.{name}": reference[f"{norm}.{name}"].shape for name in ("weight", "bias")}
    assert trunk == expected


@pytest.mark.parametrize("arch", SMALL)
def test_tail_dropout_is_random_in_training_only(arch: str) -> None:
    net = scratch(arch, dropout_site="tail")
    x = images(arch)
    with torch.no_grad():
        hidden = net.eval().prefix(x)
        assert torch.equal(net.tail(hidden), net.tail(hidden))
        for layer in net.tail_dropouts():
            layer.train()
        assert not torch.equal(net.tail(hidden), net.tail(hidden))


@pytest.mark.parametrize("arch", SMALL)
def test_prefix_does_not_depend_on_dropout(arch: str) -> None:
    """The prefix may be computed once for all passes: nothing in it is random, even while it trains."""
    net = scratch(arch, dropout=0.9, dropout_site="tail")
    other = scratch(arch, dropout=0.0, dropout_site="head")
    x = images(arch)
    with torch.no_grad():
        assert torch.equal(net.eval().prefix(x), other.eval().prefix(x))
        assert torch.equal(net.train().prefix(x), net.prefix(x))


def test_channel_dropout_drops_whole_channels() -> None:
    layer = scratch(dropout=0.25, dropout_site="tail").tail_dropouts()[0]
    assert layer.num_units == 512
    z = layer(torch.ones(64, 512, 2, 2))
    assert torch.equal(z, z[:, :, :1, :1].expand_as(z))
    assert z.unique().tolist() == pytest.approx([0, 4 / 3])
    share = (z[:, :, 0, 0] == 0).float().mean().item()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / (64 * 512)) ** 0.5


@pytest.mark.parametrize("mask_shape", [(512,), (2, 512)])
def test_given_mask_equals_multiplication_before_the_block(mask_shape: tuple[int, ...]) -> None:
    """ResNet-18 has one stochastic block: tail(x; mask) = layer4[1](x * mask), with BatchNorm in eval mode."""
    net = scratch(dropout_site="tail").eval()
    (layer,) = net.tail_dropouts()
    keys = list(net.state_dict())
    mask = torch.bernoulli(torch.full(mask_shape, 0.5), generator=torch.Generator().manual_seed(3)) * 2
    block = net.tail.get_submodule("layer4.1")
    with torch.no_grad():
        hidden = net.prefix(images())
        plain = net.tail(hidden)
        layer.mask = mask
        masked = net.tail(hidden)
        assert torch.equal(masked, block(hidden * mask.view(-1, 512, 1, 1)))
        assert not torch.equal(masked, plain)
        assert list(net.state_dict()) == keys
        layer.mask = None
        assert torch.equal(net.tail(hidden), plain)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tail_dropouts_know_their_channels(arch: str) -> None:
    """A mask made from num_units before any forward fits what arrives there."""
    arrived: list[int] = []
    with torch.device("meta"):
        net = PneumoniaNet(ModelConfig(arch, "none", dropout_site="tail")).eval()
        for layer in net.tail_dropouts():
            layer.mask = torch.ones(layer.num_units)
            layer.register_forward_pre_hook(
                lambda module, args: arrived.append(args[0].shape[-1 if module.channels_last else 1])
            )
        net(torch.ones(2, 3, 96, 96))
    assert arrived == [layer.num_units for layer in net.tail_dropouts()]


def trained_modules(net: PneumoniaNet) -> set[str]:
    return {name.rpartition(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("arch", "last_stage"),
    [
        ("resnet50", ("prefix.layer4.", "tail.layer4.")),
        ("densenet121", ("tail.",)),
        ("vgg16", ("prefix.features.24", "prefix.features.26", "tail.features.28")),
        ("inception_v3", ("prefix.Mixed_7a.", "prefix.Mixed_7b.", "tail.Mixed_7c.")),
        ("efficientnet_b0", ("prefix.features.7.", "tail.features.8.")),
        ("convnext_tiny", ("prefix.features.6.", "tail.")),
        ("swin_t", ("prefix.features.6.", "tail.")),
        ("maxvit_t", ("prefix.blocks.3.", "tail.")),
    ],
)
def test_freeze_leaves_last_stage_or_head(arch: str, last_stage: tuple[str, ...]) -> None:
    with torch.device("meta"):
        nets = {freeze: PneumoniaNet(ModelConfig(arch, "none", freeze=freeze)) for freeze in ("none", "early")}
        assert trained_modules(PneumoniaNet(ModelConfig(arch, "none", freeze="backbone"))) == {"classifier"}
    every = trained_modules(nets["none"])
    assert trained_modules(nets["early"]) == {
        name for name in every if name == "classifier" or name.startswith(last_stage)
    }


@pytest.mark.parametrize("freeze", ["early", "backbone"])
def test_frozen_layers_survive_a_training_step(freeze: str) -> None:
    net = scratch(freeze=freeze, dropout_site="tail")
    frozen = "prefix.layer3." if freeze == "early" else ("prefix.", "tail.")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for mode in (None, True):  # as built, and after an epoch has switched to eval and back
        if mode:
            net.eval().train()
        net.zero_grad()
        F.binary_cross_entropy_with_logits(net(images()), torch.tensor([0.0, 1.0])).backward()
        torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2).step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert not {key for key in changed if key.startswith(frozen)}
    assert "classifier.weight" in changed
    assert ("tail.layer4.1.bn1.running_mean" in changed) == (freeze == "early")
    # The dropout is trained with even where the layers around it are frozen.
    assert all(layer.training for layer in net.tail_dropouts())
    assert not any(layer.training for layer in net.eval().tail_dropouts())


@pytest.mark.parametrize(
    ("arch", "suffix"),
    [("resnet18", ".pth"), ("resnet18", ".safetensors"), ("densenet121", ".pth"), ("inception_v3", ".safetensors"),
     ("swin_t", ".pth")],
)  # fmt: skip
def test_torchvision_state_dict_reproduces_torchvision_features(arch: str, suffix: str, tmp_path: Path) -> None:
    twin = torchvision_twin(arch)
    file = tmp_path / f"twin{suffix}"
    if suffix == ".pth":
        torch.save(twin.state_dict(), file)
    else:
        safetensors.torch.save_file(twin.state_dict(), file)
    # float64, because these networks magnify float32's rounding; what is left is that of Inception's folded weights.
    net = build_model(ModelConfig(arch, str(file))).eval().double()
    twin.double()
    x = images(arch).double()
    with torch.no_grad():
        expected = torchvision_maps(twin, arch, x)
        assert (expected[0] - expected[1]).abs().mean() > 0.1 * expected.abs().mean()
        tolerance = 2e-4 if arch == "inception_v3" else 1e-9
        assert (net.feature_maps(x) - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("arch", ["vgg16", "efficientnet_b0"])
def test_torchvision_features_container_is_the_trunk(arch: str) -> None:
    """Same check without a file, for the networks that torchvision keeps in `features`."""
    net = ready(arch)
    with torch.device("meta"):
        twin = torchvision.models.get_model(arch, weights=None).features.eval()
    twin.load_state_dict(
        {key.split(".features.", 1)[1]: value for key, value in net.state_dict().items() if ".features." in key},
        assign=True,
    )
    with torch.no_grad():
        torch.testing.assert_close(net.feature_maps(images(arch)), twin(images(arch)))


def test_old_densenet_keys_with_dots_are_understood(tmp_path: Path) -> None:
    state = torchvision.models.densenet121(weights=None).state_dict()
    old = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for key, value in state.items()}
    assert old.keys() != state.keys()
    safetensors.torch.save_file(old, tmp_path / "old.safetensors")
    net = build_model(ModelConfig("densenet121", str(tmp_path / "old.safetensors")))
    key = "features.denseblock4.denselayer3.norm1.weight"
    assert torch.equal(net.state_dict()[f"tail.{key}"], state[key])


def test_own_weights_load_at_either_site(tmp_path: Path) -> None:
    source = scratch(dropout_site="head").eval()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(9)
    net = build_model(ModelConfig("resnet18", str(tmp_path / "weights.safetensors"), dropout_site="tail")).eval()
    with torch.no_grad():
        assert torch.equal(net(images()), source(images()))


def test_state_dict_without_batch_counters_loads(tmp_path: Path) -> None:
    """Files from before torch 0.4.1 have no num_batches_tracked."""
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    net = build_model(ModelConfig("resnet18", str(tmp_path / "old.pth")))
    assert torch.equal(net.state_dict()["prefix.conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize(
    ("saved", "asked", "fault"),
    [
        ("resnet34", "resnet18", "is not part of it"),
        ("resnet18", "resnet34", "is missing"),
        ("resnext50_32x4d", "resnet50", "has shape"),
        ("resnet18", "inception_v3", "model.arch"),
    ],
)
def test_weights_of_another_architecture_are_refused(saved: str, asked: str, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    with torch.device("meta"):
        twin = torchvision.models.get_model(saved, weights=None)
    safetensors.torch.save_file(twin.to_empty(device="cpu").state_dict(), file)
    with pytest.raises(ModelError, match=f"other.safetensors.*{asked}") as caught:
        build_model(ModelConfig(asked, str(file)))
    assert fault in str(caught.value)


class Hostile:
    """Unpickling it runs a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    file, marker = tmp_path / "evil.pth", tmp_path / "ran"
    if zipped:
        torch.save({"conv1.weight": Hostile(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(Hostile(marker), protocol=2))
    with pytest.raises(ModelError, match=r"evil\.pth"):
        build_model(ModelConfig("resnet18", str(file)))
    assert not marker.exists()
    torch.load(file, weights_only=False) if zipped else pickle.loads(file.read_bytes())
    assert marker.exists(), "the file was harmless, so the test showed nothing"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused_with_their_name(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    state = {"conv1.weight": torch.ones(64, 3, 7, 7)}
    torch.save(state, file) if suffix == ".pth" else safetensors.torch.save_file(state, file)
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b"<html>not found</html>"):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=rf"weights\{suffix}") as caught:
            build_model(ModelConfig("resnet18", str(file)))
        assert "\n" not in str(caught.value)


def test_missing_foreign_and_wrapped_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.pth"):
        build_model(ModelConfig("resnet18", str(tmp_path / "absent.pth")))
    with pytest.raises(ModelError, match="is not a file"):
        build_model(ModelConfig("resnet18", str(tmp_path)))
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"weights\.h5"):
        build_model(ModelConfig("resnet18", str(tmp_path / "weights.h5")))
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ModelError, match=r"checkpoint\.pth.*state_dict"):
        build_model(ModelConfig("resnet18", str(tmp_path / "checkpoint.pth")))


def test_imagenet_weights_load_or_name_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    message = ""
    try:
        build_model(ModelConfig("resnet18"))
    except ModelError as error:
        message = str(error)
    assert message in (
        "",
        "ImageNet weights for resnet18 could not be downloaded (no network?); give a local file with "
        "--model.weights FILE or train from scratch with --model.weights none",
    )


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("resnet51", "resnet50"), ("Densenet-121", "densenet121"), ("vgg", "vgg16")]
)
def test_unknown_architecture_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.arch '{wrong}'.*did you mean {nearest}\?"):
        ModelConfig(wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", float("nan")),
        ("dropout_site", "both"),
        ("freeze", "all"),
        ("weights", ""),
    ],
)
def test_bad_options_are_refused_by_name(field: str, value: object) -> None:
    option = field.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"model\.{option}"):
        ModelConfig(**{field: value})  # type: ignore[arg-type]


def test_seed_fixes_the_initial_weights() -> None:
    first, second = scratch().state_dict(), scratch().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("arch", "norm"), [("convnext_tiny", "classifier.0"), ("maxvit_t", "classifier.2")])
def test_a_published_final_norm_is_the_last_step(arch: str, norm: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        twin = torchvision.models.get_model(arch, weights=None)
    state = {name: torch.full_like(value, 0, device="cpu") for name, value in twin.state_dict().items()}
    state[f"{norm}.weight"] = torch.arange(len(state[f"{norm}.weight"])).float()
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors")
    net = build_model(ModelConfig(arch, str(tmp_path / "theirs.safetensors")))
    assert torch.equal(net.state_dict()["tail.norm.weight"], state[f"{norm}.weight"])
