"""One battery for every trunk, built in or registered by a user: whatever the product promises of a network."""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import ready, smallest_images
from torch import Tensor, nn

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.explain.cam import grad_cam
from pneumo_ray.model import (
    ARCHITECTURES,
    ModelConfig,
    PneumoniaNet,
    Preprocessing,
    Trunk,
    load_bundle,
    register_trunk,
    save_bundle,
)
from pneumo_ray.model.network import map_size
from pneumo_ray.model.trunks import TRUNKS_VARIABLE, find_trunk, with_keys
from pneumo_ray.train.guidance import outside_share
from pneumo_ray.train.slot_dropout import slot_dropout

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
OWN = "small_net"
"""The trunk of the ten lines in docs/training.md."""

QUICK = ("resnet18", "efficientnet_b0", "convnext_tiny", "swin_t", "maxvit_t")
"""One of each kind; what takes seconds is marked slow for the others."""
TRUNKS = [OWN, *(pytest.param(arch, marks=pytest.mark.slow) if arch not in QUICK else arch for arch in ARCHITECTURES)]
IN_TRUNK = [
    (OWN, "tail"),
    *((arch, "tail") for arch in QUICK),
    *((arch, "keys") for arch in QUICK if arch in with_keys()),
]


@pytest.fixture(autouse=True, scope="module")
def own_trunk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The ten lines of the documentation, in a module that the environment names; and one thread."""
    code = DOCS.read_text().split("# my_trunks.py\n", 1)[1].split("```", 1)[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_trunks.py").write_text(code)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv(TRUNKS_VARIABLE, "my_trunks")
        yield
    torch.set_num_threads(num_threads)
    sys.modules.pop("my_trunks", None)


def assert_near(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    scale = expected.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(actual, expected, rtol=relative, atol=relative * scale)


@pytest.mark.parametrize("arch", [OWN, *ARCHITECTURES])
def test_maps_have_the_size_that_is_known_beforehand(arch: str) -> None:
    """At the smallest size and at an odd one."""
    trunk = find_trunk(arch)
    with torch.device("meta"):
        net = PneumoniaNet(ModelConfig(arch, "none")).eval()
        small, large = (net.feature_maps(torch.empty(2, 3, size, size)).shape for size in (trunk.min_size, 109))
    assert small[:2] == large[:2] == (2, trunk.num_maps)
    assert 1 <= small[2] < large[2]
    assert large[2:] == map_size(net.config, 109)


@pytest.mark.parametrize("arch", [OWN, *ARCHITECTURES])
def test_running_statistics_are_those_of_recent_steps(arch: str) -> None:
    """Of the statistics at the start less than a hundredth is left after fifty steps: a short training validates by its own."""
    with torch.device("meta"):
        net = PneumoniaNet(ModelConfig(arch, "none"))
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        assert (1 - norm.momentum) ** 50 < 0.01


@pytest.mark.parametrize("arch", TRUNKS)
def test_gradient_of_the_logit_is_the_head_weight(arch: str) -> None:
    """`d logit / d A_k = w_k / (h w)` at every position, and the signed map sums to the logit without its bias."""
    net, x = ready(arch), smallest_images(arch)
    with torch.no_grad():
        maps = net.feature_maps(x)
    maps.requires_grad_()
    logit, signed = net.head_with_map(maps)
    (gradient,) = torch.autograd.grad(logit.sum(), maps)
    expected = (net.classifier.weight[0] / maps[0, 0].numel())[None, :, None, None].expand_as(maps)
    assert_near(gradient, expected)
    terms = (net.classifier.weight[0] * maps.mean((2, 3))).abs().sum(1)
    assert (terms > 0.01).all()
    assert ((signed.sum((1, 2)) - (logit - net.classifier.bias)).abs() <= 1e-5 * terms).all()
    assert logit[0] != logit[1]


@pytest.mark.parametrize("arch", TRUNKS)
def test_map_is_that_of_a_public_package(arch: str) -> None:
    attr = pytest.importorskip("captum.attr", reason="a peer of the development extra: pip install captum")
    net, x = ready(arch), smallest_images(arch)
    theirs = attr.LayerGradCam(net, net.tail).attribute(x, relu_attributions=True)[:, 0].detach()
    with torch.no_grad():
        assert_near(grad_cam(net, net.feature_maps(x), "pneumonia"), theirs, 1e-4)


@pytest.mark.parametrize(("arch", "site"), IN_TRUNK)
def test_passes_inside_the_trunk_equal_whole_forwards(arch: str, site: str) -> None:
    """Each pass repeats the tail alone, and gives what the whole network gives with that mask."""
    net, x = ready(arch, site), smallest_images(arch)
    calls: list[int] = []
    handle = net.prefix.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    engine = BayesGradCAM(net, passes=3, seed=1)
    logits, first = engine.logits_and_map(x)
    handle.remove()
    assert calls == [2]
    with torch.no_grad():
        assert_near(logits[:, 0], net(x), 1e-4)
        try:
            for number in range(3):
                for layer, masks in zip(net.tail_dropouts(), engine.masks, strict=True):
                    layer.mask = masks[number]
                assert_near(logits[:, 1 + number], net(x), 1e-4)
        finally:
            for layer in net.tail_dropouts():
                layer.mask = None
    assert (logits.std(1) > 0).all()
    assert first.shape == (2, *map_size(net.config, x.shape[-1]))


@pytest.mark.parametrize(("arch", "site"), [(OWN, "head"), ("convnext_tiny", "head"), *IN_TRUNK])
def test_training_is_random_by_slot_only(arch: str, site: str) -> None:
    """No layer draws from the process, and with one mask for each slot a step can be repeated."""
    net, x = ready(arch, site, own=True), smallest_images(arch)
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    before = torch.get_rng_state()
    found = []
    with slot_dropout(net, 0) as draw, torch.no_grad():
        for slots in ([4, 5], [4, 5], [6, 7]):
            draw(np.array(slots, np.uint64))
            found.append(net(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    with torch.no_grad():
        assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("arch", TRUNKS)
def test_weights_come_back_from_a_bundle(arch: str, tmp_path: Path) -> None:
    net, x = ready(arch, "tail"), smallest_images(arch)
    save_bundle(tmp_path / "model", net, preprocessing=Preprocessing(64, 73))
    loaded = load_bundle(tmp_path / "model").model
    assert loaded.config == net.config
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


@pytest.mark.parametrize("arch", [OWN, *ARCHITECTURES])
def test_freezing_leaves_what_follows_the_last_stage(arch: str) -> None:
    """`early` trains every weight from the last stage on, in the order in which they run; `backbone` the head alone."""

    def trained(freeze: str) -> list[str]:
        with torch.device("meta"):
            net = PneumoniaNet(ModelConfig(arch, "none", freeze=freeze))  # type: ignore[arg-type]
        return [name for name, parameter in net.named_parameters() if parameter.requires_grad]

    every, early = trained("none"), trained("early")
    assert trained("backbone") == ["classifier.weight", "classifier.bias"]
    assert early == every[-len(early) :]
    assert 2 < len(early) < len(every)
    assert find_trunk(arch).last_stage in early[0]
    with torch.device("meta"):
        frozen = PneumoniaNet(ModelConfig(arch, "none", freeze="backbone")).train()
    assert not any(module.training for module in frozen.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("arch", TRUNKS)
def test_bfloat16_leaves_the_arithmetic_of_maps_exact(arch: str) -> None:
    net, x = ready(arch), smallest_images(arch)
    e = BayesGradCAM(net, passes=2, amp_dtype=torch.bfloat16)(x, "pneumonia")
    exact = BayesGradCAM(net, passes=2)(x, "pneumonia")
    assert e.cam_signed.dtype == torch.float32
    terms = exact.cam_signed.abs().sum((1, 2))
    assert ((e.cam_signed.sum((1, 2)) - (e.logit - net.classifier.bias)).abs() <= 1e-5 * terms).all()


@pytest.mark.parametrize("arch", TRUNKS)
def test_guidance_reaches_the_first_layer(arch: str) -> None:
    """The share outside the lungs is part of the forward pass, so one backward pass has its gradient in every weight."""
    net = ready(arch, own=True)
    size = 64 if find_trunk(arch).min_size <= 64 else 128  # a map of one cell has no share that could change
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.classifier.weight.abs_()  # evidence everywhere: a share of 0 or 1 has no gradient
    _, signed = net(x, with_map=True)
    inside = torch.zeros_like(signed)
    inside[:, :1] = 1
    outside_share(signed, inside).sum().backward()
    gradients = [parameter.grad for parameter in net.prefix.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert gradients[0] is not None
    assert (gradients[0] != 0).any()


def _steps(net: PneumoniaNet, optimizer: torch.optim.Optimizer, slots: list[int]) -> None:
    net.train()
    with slot_dropout(net, 3) as draw:
        for slot in slots:
            draw(np.array([slot, slot + 1], np.uint64))
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(net(smallest_images(net.config.arch)), torch.tensor([0.0, 1.0]))
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("arch", TRUNKS)
def test_training_resumes_exactly(arch: str) -> None:
    """One step, the state put into another network, one more step: bitwise what two steps give."""
    site = "keys" if arch in with_keys() else "tail"
    nets = [ready(arch, site, own=True, freeze="early") for _ in range(2)]
    optimizers = [torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3) for net in nets]
    _steps(nets[0], optimizers[0], [0])
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    before = nets[0].classifier.weight.clone()
    for net, optimizer in zip(nets, optimizers, strict=True):
        _steps(net, optimizer, [2])
    assert not torch.equal(nets[0].classifier.weight, before)
    assert all(torch.equal(a, b) for a, b in zip(*(net.state_dict().values() for net in nets), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [OWN, "resnet18", "densenet121", "convnext_tiny", "swin_t", "maxvit_t"])
def test_one_graph_holds_the_whole_trunk(arch: str) -> None:
    """`fullgraph` refuses anything that torch.compile cannot capture."""
    net, x = ready(arch), smallest_images(arch)
    compiled: Callable[[Tensor], Tensor] = torch.compile(net.feature_maps, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_near(compiled(x), net.feature_maps(x), 1e-4)


@pytest.mark.parametrize("arch", [OWN, *ARCHITECTURES])
def test_options_that_a_trunk_lacks_are_refused(arch: str) -> None:
    trunk = find_trunk(arch)
    if not trunk.has_keys:
        with pytest.raises(ConfigError, match=f"needs attention, and {arch} has none.*swin_t or maxvit_t"):
            ModelConfig(arch, "none", dropout_site="keys")
    if not trunk.dilated:
        with pytest.raises(ConfigError, match="is for ResNets"):
            ModelConfig(arch, "none", output_stride=16)


def test_a_name_belongs_to_one_trunk() -> None:
    register_trunk("resnet18", find_trunk("resnet18"))
    with pytest.raises(ConfigError, match="another trunk 'resnet18'"):
        register_trunk("resnet18", Trunk(512, (("layer4", 256),), "layer4"))
    with pytest.raises(ConfigError, match="no step that a dropout precedes"):
        register_trunk("bare", Trunk(512, (), "layer4"))


@pytest.mark.parametrize("stride", [1, 8, 28, 64])
def test_an_own_trunk_may_have_any_stride(stride: int) -> None:
    """It says how fine its maps are, and nothing is made of it where no stride becomes a dilation."""
    built = find_trunk(ModelConfig(OWN, "none").arch)
    register_trunk(f"strided_{stride}", replace(built, stride=stride))
    assert map_size(ModelConfig(f"strided_{stride}", "none"), 112) == map_size(ModelConfig(OWN, "none"), 112)


def test_modules_that_cannot_be_imported_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUNKS_VARIABLE, "absent_trunks")
    with pytest.raises(ConfigError, match="'absent_trunks', which cannot be imported"):
        ModelConfig("something", "none")
    assert ModelConfig("resnet18", "none").arch == "resnet18"  # built in: no module is needed


def test_own_trunk_has_no_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumo_ray.model import build_model

    with pytest.raises(ModelError, match=f"no ImageNet weights of {OWN}"):
        build_model(ModelConfig(OWN))
