"""Finer maps from the same weights: strides of the last stages of a ResNet become dilations."""

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from pneumo_ray.errors import ConfigError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import (
    ARCHITECTURES,
    ModelConfig,
    PneumoniaNet,
    Preprocessing,
    build_model,
    load_bundle,
    save_bundle,
)
from pneumo_ray.model.network import map_size
from pneumo_ray.model.signed_map import signed_maps

RESNETS = [arch for arch in ARCHITECTURES if arch.startswith(("resn", "wide_resn"))]
BOTTLENECKS = [arch for arch in RESNETS if arch not in ("resnet18", "resnet34")]


def net_of(arch: str, stride: int, **options: object) -> PneumoniaNet:
    torch.manual_seed(0)
    return PneumoniaNet(ModelConfig(arch, "none", output_stride=stride, **options)).eval()  # type: ignore[arg-type]


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", RESNETS)
@pytest.mark.parametrize(("stride", "side"), [(32, 7), (16, 14), (8, 28)])
def test_maps_have_the_stride_that_was_asked_for(arch: str, stride: int, side: int) -> None:
    assert map_size(ModelConfig(arch, "none", output_stride=stride), 224) == (side, side)  # type: ignore[arg-type]


@pytest.mark.parametrize(("arch", "size"), [("resnet18", 64), ("resnet18", 75), ("resnet50", 43)])
def test_coarse_cells_are_every_second_cell(arch: str, size: int) -> None:
    """Holschneider's rule: with every later kernel spread by the stride that is gone, the function stays the same."""
    x = images(size).double()
    with torch.no_grad():
        coarse, fine, finest = (net_of(arch, stride).double().feature_maps(x) for stride in (32, 16, 8))
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(finest[..., ::4, ::4], coarse, rtol=1e-9, atol=1e-12)
    assert fine.std() > 0


@pytest.mark.parametrize("arch", BOTTLENECKS)
@pytest.mark.parametrize("stride", [16, 8])
def test_bottlenecks_are_those_of_torchvision(arch: str, stride: int) -> None:
    def convolutions(net: nn.Module) -> list[tuple[object, ...]]:
        return [(m.stride, m.dilation, m.padding) for m in net.modules() if isinstance(m, nn.Conv2d)]

    with torch.device("meta"):
        twin = torchvision.models.get_model(arch, weights=None, replace_stride_with_dilation=[False, stride == 8, True])
        assert convolutions(net_of(arch, stride)) == convolutions(twin)


@pytest.mark.parametrize("arch", RESNETS)
def test_weights_have_the_same_names_and_shapes(arch: str) -> None:
    with torch.device("meta"):
        shapes = [{k: v.shape for k, v in net_of(arch, stride).state_dict().items()} for stride in (32, 16, 8)]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("site", ["head", "tail"])
def test_the_signed_map_still_sums_to_the_logit(stride: int, site: str) -> None:
    net = net_of("resnet18", stride, dropout_site=site)
    nn.init.constant_(net.classifier.bias, 0.7)
    x = images(64)
    with torch.no_grad():
        signed = signed_maps(net.feature_maps(x), net.classifier.weight)[:, 0]
        torch.testing.assert_close(signed.sum((1, 2)), net(x) - 0.7, rtol=1e-4, atol=1e-5)
        explained = BayesGradCAM(net, passes=4)(x)
        logits, first = BayesGradCAM(net, passes=4).logits_and_map(x)
    assert explained.cam.shape == (2, 64 // stride, 64 // stride)
    torch.testing.assert_close(explained.cam_signed.sum((1, 2)), explained.logit - 0.7, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, explained.cam_signed)
    torch.testing.assert_close(logits[:, 0], explained.logit)
    torch.testing.assert_close(logits[:, 1:].mean(1), explained.logit_mean)


def test_weights_of_stride_32_load_at_stride_16(tmp_path: Path) -> None:
    net = net_of("resnet18", 32)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "ours.safetensors")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "theirs.pth")
    for name in ("ours.safetensors", "theirs.pth"):
        build_model(ModelConfig("resnet18", str(tmp_path / name), output_stride=16))
    loaded = build_model(ModelConfig("resnet18", str(tmp_path / "ours.safetensors"), output_stride=16))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in RESNETS])
def test_other_trunks_refuse_another_stride(arch: str) -> None:
    with pytest.raises(ConfigError, match=f"for ResNets, and {arch} is none"):
        ModelConfig(arch, "none", output_stride=16)
    with pytest.raises(ConfigError, match="32, 16 or 8"):
        ModelConfig("resnet18", "none", output_stride=4)  # type: ignore[arg-type]


def test_bundles_keep_stride_and_fit(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_bundle(folder, net_of("resnet18", 16), preprocessing=Preprocessing(64, 73, fit="lungs", margin=0.1))
    bundle = load_bundle(folder)
    assert bundle.model.config.output_stride == 16
    assert (bundle.preprocessing.fit, bundle.preprocessing.margin) == ("lungs", 0.1)
    assert bundle.model(images(64)).shape == (2,)
    description = json.loads((folder / "model.json").read_text())
    del description["hash"], description["model"]["output_stride"]
    del description["preprocessing"]["fit"], description["preprocessing"]["margin"]
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    description["hash"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps(description))
    old = load_bundle(folder)
    assert old.model.config.output_stride == 32
    assert old.preprocessing.fit == "squash"
