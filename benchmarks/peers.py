"""20 passes against other packages, in three ways of using them.

As their documentation shows; batched, with frozen weights and only dropout in training mode; and optimised by hand, with
the feature maps computed once and only the head repeated. captum, torch-cam and pytorch-grad-cam give the map of every
pass. torch-uncertainty gives the outputs of the passes and no map, so it has rows of its own. Packages that are not
installed are named in a row. All run in one process, so with one allocator.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, rates
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import PneumoniaNet

Maps = Callable[[nn.Module, nn.Module, Tensor], object]
"""From a model, its layer and a batch to the maps of one pass."""

Work = Callable[[], int]
"""Does something and returns for how many images."""

TIERS = ("as documented", "batched and frozen", "feature maps cached")


def against_peers(net: PneumoniaNet, x: Tensor, passes: int, rounds: int = 2) -> Iterator[Row]:
    """Measure passes with ready inputs; the others get few images, because they are slow.

    Args:
        net: dropout at its head.
        x: inputs [B, 3, S, S] of ours; the others get the first four.
        passes: number of passes.
        rounds: how often the candidates take turns.
    """
    engine, few = BayesGradCAM(net, passes), x[:4]

    def ours() -> int:
        engine(x)
        return len(x)

    packages, absent = _packages()
    mapped = {
        f"{package}, {tier}": way
        for package, maps_of in packages.items()
        for tier, way in zip(TIERS, _ways(net, few, maps_of, passes), strict=True)
    }
    outputs: dict[str, Work] = {}
    try:
        outputs = dict(zip(TIERS, _mc_dropout(net, few, passes), strict=True))
    except ImportError:
        absent.append("torch-uncertainty")
    found = rates({"ours": ours} | mapped | outputs, rounds)
    for tier, words in (("one or two", TIERS[:2]), ("three", TIERS[2:])):
        if mapped:
            name = max((name for name in mapped if name.endswith(words)), key=lambda name: found[name])
            goal = ">= 15" if tier == "one or two" else "reported"
            yield _row(f"{passes} passes against the best other use, tier {tier}", found, name, name, goal)
    for tier in outputs:
        what = f"torch-uncertainty, {tier}: outputs of the passes, no maps"
        yield _row(f"{passes} passes with maps against MC dropout without", found, tier, what, "reported")
    for package in absent:
        yield Row(f"{passes} passes against {package}", "", f"{package} is not installed", float("nan"), "")


def _row(what: str, found: dict[str, float], name: str, other: str, goal: str) -> Row:
    return Row(
        what, f"{found['ours']:.1f} img/s", f"{found[name]:.2f} img/s, {other}", found["ours"] / found[name], goal
    )


class _Plain(nn.Module):
    """The same network with torch's own dropout, which torch-uncertainty looks for, and one output column."""

    def __init__(self, trunk: Callable[[Tensor], Tensor], net: PneumoniaNet) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(net.dropout.p)
        self.classifier = net.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.trunk(x).mean((2, 3))))


def _mc_dropout(net: PneumoniaNet, x: Tensor, passes: int) -> tuple[Work, Work, Work]:
    """Return the three ways of torch-uncertainty: one image with its passes as a batch, a loop over batches, the head alone.

    Raises:
        ImportError: if it, or a package that it needs, is absent.
    """
    from torch_uncertainty.methods.mc_dropout import mc_dropout

    whole, head = _Plain(net.feature_maps, net), _Plain(lambda maps: maps, net)
    at_once, in_turn = mc_dropout(whole, passes).eval(), mc_dropout(whole, passes, on_batch=False).eval()
    cached = mc_dropout(head, passes).eval()

    def documented() -> int:
        with torch.no_grad():
            at_once(x[:1])
        return 1

    def batched() -> int:
        with torch.inference_mode():
            in_turn(x)
        return len(x)

    def of_maps() -> int:
        with torch.inference_mode():
            cached(net.feature_maps(x))
        return len(x)

    return documented, batched, of_maps


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


def _packages() -> tuple[dict[str, Maps], list[str]]:
    """Return the packages that give maps, and the names of those that are absent."""
    found: dict[str, Maps] = {}
    absent: list[str] = []
    for name, make in {"torch-cam": _torch_cam, "captum": _captum, "pytorch-grad-cam": _grad_cam}.items():
        try:
            found[name] = make()
        except ImportError:
            absent.append(name)
    return found, absent


def _torch_cam() -> Maps:
    from torchcam.methods import GradCAM

    def maps_of(model: nn.Module, layer: nn.Module, x: Tensor) -> object:
        training = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training]
        for m in training:  # it rejects models in training mode, so dropout is switched on afterwards
            m.training = False
        extractor = GradCAM(model, layer)
        for m in training:
            m.training = True
        with extractor:
            scores = model(x)
            return extractor([0] * len(x), scores)

    return maps_of


def _captum() -> Maps:
    from captum.attr import LayerGradCam

    def maps_of(model: nn.Module, layer: nn.Module, x: Tensor) -> object:
        return LayerGradCam(model, layer).attribute(x, target=0, relu_attributions=True)

    return maps_of


def _grad_cam() -> Maps:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def maps_of(model: nn.Module, layer: nn.Module, x: Tensor) -> object:
        training = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training]
        with GradCAM(model, [layer]) as cam:
            for m in training:  # its constructor calls eval()
                m.training = True
            return cam(x, [ClassifierOutputTarget(0)] * len(x))

    return maps_of


def _ways(net: PneumoniaNet, x: Tensor, maps_of: Maps, passes: int) -> tuple[Work, Work, Work]:
    """Return the three ways of a package that gives maps."""
    return _documented(net, x, maps_of, passes), _batched(net, x, maps_of, passes), _cached(net, x, maps_of, passes)


def _documented(net: PneumoniaNet, x: Tensor, maps_of: Maps, passes: int) -> Work:
    def work() -> int:
        model = _Classes(net)
        with _dropout_on(net):
            for _ in range(passes):
                maps_of(model, net.tail, x[:1].clone().requires_grad_())
        return 1

    return work


def _batched(net: PneumoniaNet, x: Tensor, maps_of: Maps, passes: int) -> Work:
    def work() -> int:
        model = _Classes(net)
        frozen = [p for p in net.parameters() if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        try:
            with _dropout_on(net):
                for _ in range(passes):
                    maps_of(model, net.tail, x.clone().requires_grad_())
        finally:
            for p in frozen:
                p.requires_grad_(True)
        return len(x)

    return work


def _cached(net: PneumoniaNet, x: Tensor, maps_of: Maps, passes: int) -> Work:
    def work() -> int:
        with torch.no_grad():
            maps = net.feature_maps(x)
        head = _Head(net)
        with _dropout_on(net):
            for _ in range(passes):
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
