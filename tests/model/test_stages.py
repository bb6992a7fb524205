"""ResNets without their last stage: the maps of the stage before, with the same weights."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from pneumo_ray.errors import ConfigError, ModelError
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

RESNETS = [arch for arch in ARCHITECTURES if arch.startswith(("resn", "wide_resn"))]


def shorter(arch: str = "resnet18", stride: int = 16, **options: object) -> ModelConfig:
    return ModelConfig(arch, **{"weights": "none", "output_stride": stride, "stages": 3} | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", RESNETS)
def test_maps_are_those_of_torchvisions_third_stage(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(arch, weights=None).eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    net = build_model(shorter(arch, weights=str(tmp_path / "theirs.safetensors"))).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            net.feature_maps(x), create_feature_extractor(theirs, {"layer3": "maps"})(x)["maps"], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(("stride", "side"), [(16, 14), (8, 28)])
def test_maps_have_the_stride_of_the_stage(stride: int, side: int) -> None:
    assert map_size(shorter(stride=stride), 224) == (side, side)


def test_every_second_cell_is_coarse() -> None:
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    coarse, fine = PneumoniaNet(shorter()).double().eval(), PneumoniaNet(shorter(stride=8)).double().eval()
    fine.load_state_dict(coarse.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fine.feature_maps(x)[..., ::2, ::2], coarse.feature_maps(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("site", ["head", "tail"])
def test_passes_equal_whole_forwards_with_their_masks(site: str) -> None:
    torch.manual_seed(0)
    net = PneumoniaNet(shorter(dropout_site=site)).eval()
    nn.init.constant_(net.classifier.bias, 0.7)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        explained = BayesGradCAM(net, passes=20)(x, target="pneumonia")
        torch.testing.assert_close(explained.logit, net(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(explained.cam_signed.sum((1, 2)), explained.logit - 0.7, rtol=1e-4, atol=1e-5)
    assert explained.logit_std.min() > 0


def test_early_freezing_trains_the_stage_that_is_last() -> None:
    trained = {name for name, p in PneumoniaNet(shorter(freeze="early")).named_parameters() if p.requires_grad}
    assert {name.partition(".")[2].split(".")[0] for name in trained if "layer" in name} == {"layer3"}


def test_bundles_keep_their_stages(tmp_path: Path) -> None:
    net = PneumoniaNet(shorter("resnet34")).eval()
    save_bundle(tmp_path / "model", net, preprocessing=Preprocessing(64, 73))
    loaded = load_bundle(tmp_path / "model").model
    x = torch.randn(2, 3, 64, 64)
    assert loaded.config.stages == 3
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


def test_weights_of_four_stages_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(
        PneumoniaNet(ModelConfig("resnet18", "none")).state_dict(), tmp_path / "four.safetensors"
    )
    with pytest.raises(ModelError, match="does not fit resnet18"):
        build_model(shorter(weights=str(tmp_path / "four.safetensors")))


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in RESNETS])
def test_other_trunks_keep_all_of_their_stages(arch: str) -> None:
    with pytest.raises(ConfigError, match=f"for ResNets, and {arch} is none"):
        shorter(arch, stride=32)


def test_impossible_stages_and_strides_are_refused() -> None:
    with pytest.raises(ConfigError, match="output stride of 16"):
        shorter(stride=32)
    with pytest.raises(ConfigError, match="4 or 3"):
        ModelConfig("resnet18", "none", stages=2)  # type: ignore[arg-type]
