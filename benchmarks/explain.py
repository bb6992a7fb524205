"""Cost of an explanation relative to a plain forward, to other packages (`peers`) and to the arithmetic minimum."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import against_peers
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
    yield from against_peers(net, x, PASSES)


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
    """Measure closed forms, and the Laplace posterior, whose factor is drawn, as its values do not change the cost."""
    channels = net.classifier.in_features
    laplace = LaplacePosterior(0.01 * torch.randn(channels + 1, channels + 1).triu())
    engines = {
        "closed forms, dropout": BayesGradCAM(net, "exact"),
        f"{PASSES} passes, Laplace": BayesGradCAM(net, PASSES, posterior=laplace),
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
    for name, engine in engines.items():
        yield Row(
            f"BayesGrad-CAM at the head, {name}, float32",
            f"{found[name]:.1f} img/s",
            f"{found['plain']:.1f} img/s, plain forward",
            found[name] / found["plain"],
            ">= 0.97" if engine.passes == PASSES else ">= 0.91",
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
