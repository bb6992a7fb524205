"""Cost of an explanation relative to a plain forward, to other packages and to the arithmetic minimum.

The packages are used in three ways: as their documentation shows; batched, with frozen weights and only dropout in
training mode; and optimised by hand, with the feature maps computed once and only the head repeated.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, rates
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.explain.posterior import LaplacePosterior
from pneumo_ray.model import ModelConfig, PneumoniaNet
from pneumo_ray.model.precision import autocast
from pneumo_ray.model.trunks import with_keys

BATCH, SIZE, PASSES = 16, 224, 20


def bench_explain(_: Path) -> Iterator[Row]:
    """Measure the engine on a ResNet-50 at 224 pixels, batch 16."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    net = PneumoniaNet(ModelConfig(arch="resnet50", weights="none")).to(memory_format=torch.channels_last).eval()
    for dtype, name in ((None, "float32"), (torch.bfloat16, "bfloat16")):
        yield from _head(net, x, dtype, name)
    tail = PneumoniaNet(ModelConfig(arch="resnet50", weights="none", dropout_site="tail"))
    yield from _without_passes(net, x)
    yield _tail(tail.to(memory_format=torch.channels_last).eval(), x, "in the tail", ">= 0.87")
    yield from key_rows()
    yield from _peers(net, x)


def key_rows() -> Iterator[Row]:
    """Measure passes that drop keys against one prefix and as many tails: the goal is 1.15 times that time."""
    x = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    for arch in with_keys():
        net = PneumoniaNet(ModelConfig(arch=arch, weights="none", dropout_site="keys"))
        yield _tail(net.to(memory_format=torch.channels_last).eval(), x, f"of keys, {arch}", ">= 0.87")


def _head(net: PneumoniaNet, x: Tensor, dtype: torch.dtype | None, name: str) -> Iterator[Row]:
    found = _head_rates(net, x, dtype, (PASSES, 200), rounds=9)
    for passes, goal in ((PASSES, ">= 0.97"), (200, ">= 0.91")):
        yield Row(
            f"BayesGrad-CAM, dropout at the head, {passes} passes, {name}",
            f"{found[str(passes)]:.1f} img/s",
            f"{found['plain']:.1f} img/s, plain forward",
            found[str(passes)] / found["plain"],
            goal,
        )


def head_rates(rounds: int) -> dict[str, float]:
    """Return images per second of a plain forward (`plain`) and of 20 passes (`20`) of a ResNet-50 in bfloat16."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    net = PneumoniaNet(ModelConfig(arch="resnet50", weights="none")).to(memory_format=torch.channels_last).eval()
    return _head_rates(net, x, torch.bfloat16, (PASSES,), rounds)


def _head_rates(
    net: PneumoniaNet, x: Tensor, dtype: torch.dtype | None, numbers: tuple[int, ...], rounds: int
) -> dict[str, float]:
    engines = {passes: BayesGradCAM(net, passes, amp_dtype=dtype) for passes in numbers}

    def plain() -> int:
        with torch.inference_mode(), autocast(dtype, torch.device("cpu")):
            net(x)
        return BATCH

    def explain(passes: int) -> Callable[[], int]:
        def work() -> int:
            engines[passes](x)
            return BATCH

        return work

    return rates({"plain": plain} | {str(passes): explain(passes) for passes in numbers}, rounds)


def _without_passes(net: PneumoniaNet, x: Tensor) -> Iterator[Row]:
    """Measure closed forms, and the Laplace posterior, whose factor is drawn: its values cost nothing."""
    channels = net.classifier.in_features
    laplace = LaplacePosterior(0.01 * torch.randn(channels + 1, channels + 1).triu())
    engines = {
        "closed forms, dropout": BayesGradCAM(net, "exact"),
        "200 passes, Laplace": BayesGradCAM(net, 200, posterior=laplace),
        "closed forms, Laplace": BayesGradCAM(net, "exact", posterior=laplace),
    }

    def plain() -> int:
        with torch.inference_mode():
            net(x)
        return BATCH

    def explain(engine: BayesGradCAM) -> Callable[[], int]:
        def work() -> int:
            engine(x)
            return BATCH

        return work

    found = rates({"plain": plain} | {name: explain(engine) for name, engine in engines.items()}, rounds=9)
    for name in engines:
        yield Row(
            f"BayesGrad-CAM at the head, {name}, float32",
            f"{found[name]:.1f} img/s",
            f"{found['plain']:.1f} img/s, plain forward",
            found[name] / found["plain"],
            ">= 0.91",
        )


def _tail(net: PneumoniaNet, x: Tensor, what: str, goal: str) -> Row:
    engine = BayesGradCAM(net, PASSES)

    def minimum() -> int:
        """One prefix and as many tails as there are passes, the one without dropout included."""
        with torch.inference_mode():
            features = net.prefix(x)
            for _ in range(PASSES + 1):
                net.tail(features)
        return BATCH

    def ours() -> int:
        engine(x)
        return BATCH

    found = rates({"minimum": minimum, "ours": ours}, rounds=3)
    return Row(
        f"BayesGrad-CAM, dropout {what}, {PASSES} passes",
        f"{found['ours']:.2f} img/s",
        f"{found['minimum']:.2f} img/s, one prefix and 21 tails",
        found["ours"] / found["minimum"],
        goal,
    )


class _Classes(nn.Module):
    """The network with one output column, as other packages expect."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).unsqueeze(1)


class _Head(nn.Module):
    """From ready feature maps to the output: the part that is repeated."""

    def __init__(self, net: PneumoniaNet) -> None:
        super().__init__()
        self.maps = nn.Identity()
        self.net = net

    def forward(self, maps: Tensor) -> Tensor:
        return self.net.head(self.maps(maps)).unsqueeze(1)


def _peers(net: PneumoniaNet, x: Tensor) -> Iterator[Row]:
    """Measure 20 passes by torch-cam, captum and pytorch-grad-cam, in the three ways; few images, because they are slow."""
    engine = BayesGradCAM(net, PASSES)
    few = x[:4]

    def ours() -> int:
        engine(x)
        return BATCH

    ways: dict[str, Callable[[], int]] = {}
    for package, maps_of in _packages().items():
        ways[f"{package}, as documented"] = _documented(net, few, maps_of)
        ways[f"{package}, batched and frozen"] = _batched(net, few, maps_of)
        ways[f"{package}, feature maps cached"] = _cached(net, few, maps_of)
    found = rates({"ours": ours} | ways, rounds=2)
    tiers = {"one or two": ("documented", "frozen"), "three": ("cached",)}
    for tier, words in tiers.items():
        name, rate = max(
            ((name, rate) for name, rate in found.items() if name.endswith(words)), key=lambda item: item[1]
        )
        yield Row(
            f"20 passes against the best other use, tier {tier}",
            f"{found['ours']:.1f} img/s",
            f"{rate:.2f} img/s, {name}",
            found["ours"] / rate,
            ">= 15" if tier == "one or two" else "reported",
        )


Maps = Callable[[nn.Module, nn.Module, Tensor], object]
"""From a model, its layer and a batch to the maps of one pass."""


def _packages() -> dict[str, Maps]:
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import GradCAM as TorchCAM

    def torch_cam(model: nn.Module, layer: nn.Module, x: Tensor) -> object:
        training = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training]
        for m in training:  # it rejects models in training mode, so dropout is switched on afterwards
            m.training = False
        extractor = TorchCAM(model, layer)
        for m in training:
            m.training = True
        with extractor:
            scores = model(x)
            return extractor([0] * len(x), scores)

    def captum(model: nn.Module, layer: nn.Module, x: Tensor) -> object:
        return LayerGradCam(model, layer).attribute(x, target=0, relu_attributions=True)

    def grad_cam(model: nn.Module, layer: nn.Module, x: Tensor) -> object:
        training = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training]
        with GradCAM(model, [layer]) as cam:
            for m in training:  # its constructor calls eval()
                m.training = True
            return cam(x, [ClassifierOutputTarget(0)] * len(x))

    return {"torch-cam": torch_cam, "captum": captum, "pytorch-grad-cam": grad_cam}


def _documented(net: PneumoniaNet, x: Tensor, maps_of: Maps) -> Callable[[], int]:
    def work() -> int:
        model = _Classes(net)
        with _dropout_on(net):
            for _ in range(PASSES):
                maps_of(model, net.tail, x[:1].clone().requires_grad_())
        return 1

    return work


def _batched(net: PneumoniaNet, x: Tensor, maps_of: Maps) -> Callable[[], int]:
    def work() -> int:
        model = _Classes(net)
        frozen = [p for p in net.parameters() if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        try:
            with _dropout_on(net):
                for _ in range(PASSES):
                    maps_of(model, net.tail, x.clone().requires_grad_())
        finally:
            for p in frozen:
                p.requires_grad_(True)
        return len(x)

    return work


def _cached(net: PneumoniaNet, x: Tensor, maps_of: Maps) -> Callable[[], int]:
    def work() -> int:
        with torch.no_grad():
            maps = net.feature_maps(x)
        head = _Head(net)
        with _dropout_on(net):
            for _ in range(PASSES):
                maps_of(head, head.maps, maps.clone().requires_grad_())
        return len(x)

    return work


@contextlib.contextmanager
def _dropout_on(net: PneumoniaNet) -> Iterator[None]:
    net.eval()
    net.dropout.training = True
    try:
        yield
    finally:
        net.eval()
