"""Fused maps: evidence of the last stage, divided among the cells of the stage before, over a battery of trunks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import ready, smallest_images
from torch import Tensor

from pneumo_ray.errors import ModelError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.explain.fused import finer_step, shares, watched
from pneumo_ray.explain.posterior import LaplacePosterior
from pneumo_ray.explain.sampled import SampledMaps
from pneumo_ray.model import ARCHITECTURES, ModelConfig, PneumoniaNet, Trunk, register_trunk
from pneumo_ray.model.network import map_size
from pneumo_ray.model.trunks import find_trunk, with_keys

QUICK = ("resnet18", "efficientnet_b0", "convnext_tiny", "swin_t", "maxvit_t")
TRUNKS = [pytest.param(arch, marks=pytest.mark.slow) if arch not in QUICK else arch for arch in ARCHITECTURES]


def by_hand(signed: Tensor, energy: Tensor) -> np.ndarray:
    """The formula, cell by cell: torch's upsampling of a map that is 1 in one cell gives the weights of that cell."""
    found = np.zeros(energy.shape)
    for number, (coarse, fine) in enumerate(zip(signed, energy, strict=True)):
        for cell in range(coarse.numel()):
            one = torch.zeros(coarse.numel())
            one[cell] = 1
            weights = F.interpolate(one.view(1, 1, *coarse.shape), fine.shape, mode="bilinear")[0, 0]
            part = (weights * fine).double().numpy()
            found[number] += float(coarse.flatten()[cell]) * part / part.sum()
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_stage_before_is_finer_and_precedes_dropout(arch: str) -> None:
    config = ModelConfig(arch, "none")
    for size in (find_trunk(arch).min_size * 2, 112):
        name, finer = finer_step(config, size)
        coarse = map_size(config, size)
        assert name.startswith("prefix.")
        assert finer[0] > coarse[0] and finer[1] > coarse[1]  # noqa: PT018
        assert finer[0] <= 2 * coarse[0] + 1


@pytest.mark.parametrize("arch", TRUNKS)
def test_fused_maps_are_the_formula(arch: str) -> None:
    """And sum to the logit without its bias, as those of the last stage do."""
    net, x = ready(arch), smallest_images(arch)
    last, fused = (BayesGradCAM(net, 4, maps=maps).evidence(x) for maps in ("last", "fused"))
    with watched(net, x.shape[-1]) as energies, torch.no_grad():
        net(x)
    assert fused.signed.shape == (2, 5, *finer_step(net.config, x.shape[-1])[1])
    scale = last.signed.abs().sum((2, 3)).max().item()
    for number in range(5):
        expected = by_hand(last.signed[:, number], energies[0])
        np.testing.assert_allclose(fused.signed[:, number], expected, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(fused.logit, last.logit, atol=1e-5 * scale)
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("arch", "site"), [(a, s) for a in QUICK for s in ("tail", "keys") if s == "tail" or a in with_keys()]
)
def test_passes_inside_the_trunk_are_fused_likewise(arch: str, site: str) -> None:
    """One prefix, whose activation all passes share; the deviation over passes is that of the fused maps."""
    net, x = ready(arch, site), smallest_images(arch)
    engine = BayesGradCAM(net, 3, maps="fused")
    last = BayesGradCAM(net, 3).evidence(x)
    with watched(net, x.shape[-1]) as energies:
        evidence = engine.evidence(x)
    assert len(energies) == 1
    scale = last.signed.abs().sum((2, 3)).max().item()
    expected = np.stack([by_hand(last.signed[:, number], energies[0]) for number in range(4)], 1)
    np.testing.assert_allclose(evidence.signed, expected, rtol=1e-4, atol=1e-5 * scale)
    e = engine(x, "pneumonia")
    np.testing.assert_allclose(e.cam_mean, expected[:, 1:].clip(0).mean(1), rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(e.cam_std, expected[:, 1:].clip(0).std(1, ddof=1), rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "posterior",
    [None, LaplacePosterior(0.05 * torch.randn(513, 513, generator=torch.Generator().manual_seed(0)).triu())],
)
def test_closed_forms_are_those_of_many_passes(posterior: LaplacePosterior | None) -> None:
    """Variances of fused cells need the covariances of coarse ones."""
    net, x = ready("resnet18"), smallest_images("resnet18")
    exact = BayesGradCAM(net, "exact", maps="fused", posterior=posterior)(x, "pneumonia")
    engine = BayesGradCAM(net, 20000, maps="fused", posterior=posterior)
    evidence, e = engine.evidence(x), engine(x, "pneumonia")
    assert isinstance(evidence, SampledMaps)
    assert e.cam_exact_var is not None
    torch.testing.assert_close(exact.cam_exact_var, e.cam_exact_var, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(evidence.signed[:, 1:].var(1), e.cam_exact_var, rtol=0.1, atol=0.0)
    torch.testing.assert_close(exact.logit_std, e.logit_std, rtol=0.03, atol=0.0)
    torch.testing.assert_close(exact.cam_std, e.cam_std, rtol=0.1, atol=0.02 * float(e.cam_std.max()))


def test_columns_of_shares_sum_to_one() -> None:
    """Also where no cell is active, and where sizes are no multiples; equal sizes leave the map as it is."""
    energy = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0))
    energy[0] = 0
    energy[1, :4] = 0
    divided = shares(energy, (4, 3))
    assert divided.shape == (3, 35, 12)
    assert (divided >= 0).all()
    torch.testing.assert_close(divided.sum(1), torch.ones(3, 12))
    torch.testing.assert_close(shares(energy, (7, 5)), torch.eye(35).expand(3, 35, 35))
    with pytest.raises(ValueError, match="smaller than map_size"):
        shares(energy, (8, 5))


def test_networks_without_a_finer_stage_are_refused() -> None:
    register_trunk("flat_resnet18", Trunk(512, (("layer4.1", 512),), "conv1", ("layer4",), build=_flat))
    net = PneumoniaNet(ModelConfig("flat_resnet18", "none"))
    with pytest.raises(
        ModelError, match="flat_resnet18 has no stage before its last one with maps finer than 2 x 2 at 64 px"
    ):
        BayesGradCAM(net, 2, maps="fused")(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ModelError, match="call the engine with images"):
        BayesGradCAM(ready("resnet18"), 2, maps="fused").evidence_of_maps(torch.zeros(1, 512, 2, 2))


def _flat() -> torch.nn.Module:
    import torchvision

    return torchvision.models.resnet18(weights=None)
