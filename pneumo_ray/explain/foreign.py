"""Grad-CAM of any network by autograd, with whatever dropout it has: for networks without a pooled linear head.

Here the weight of a feature map is not known beforehand, so each pass is one forward and one backward pass, for a whole
batch at once, and the backward pass stops at the layer. That is `T + 1` times a forward pass and more, where `BayesGradCAM`
needs one forward. The class, its sign and every quantity are those of `BayesGradCAM`; a map explains as much of the logit as
Grad-CAM does (arXiv 1610.02391), and sums to it only if the network happens to be linear from the layer on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.explain.cam import target_sign
from pneumo_ray.explain.explanation import Explanation
from pneumo_ray.explain.masks import DEFAULT_PASSES
from pneumo_ray.explain.sampled import SampledMaps
from pneumo_ray.explain.tail import eval_mode
from pneumo_ray.explain.target import Target
from pneumo_ray.explain.zones import image_zones
from pneumo_ray.model.calibrated import Calibration

_ELEMENTS = (nn.Dropout,)
_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class ForeignGradCAM:
    """Explain images with a network that is not a PneumoniaNet.

    All images share the masks of a pass, which are drawn from the seed, the pass and the layer: results do not depend on
    how images are batched. The network is left in the mode in which it was found, without hooks and without gradients.

    Args:
        net: returns logits [B] or [B, 1] of pneumonia, or [B, 2] of normal and pneumonia, whose difference is taken.
        layer: name of the module, as in `net.named_modules()`, that returns the feature maps [B, K, h, w].
        passes: Monte Carlo passes T, at least 2.
        seed: of the masks.
        temperature: probabilities are `sigmoid(logit / temperature + intercept)`.
        intercept: see `temperature`.
        amp_dtype: run the network under autocast to this type; None keeps the setting of the caller.

    Raises:
        ConfigError: if there is no such layer (the nearest are named), or passes cannot work.
        ModelError: if the network has no dropout to sample.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(1))
        >>> ForeignGradCAM(net, "0")(torch.randn(2, 3, 16, 16)).cam_std.shape
        torch.Size([2, 14, 14])
    """

    def __init__(
        self,
        net: nn.Module,
        layer: str,
        passes: int = DEFAULT_PASSES["tail"],
        seed: int = 0,
        *,
        temperature: float = 1.0,
        intercept: float = 0.0,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        """Find the layer and the dropouts."""
        names = [name for name, _ in net.named_modules() if name]
        if layer not in names:
            raise ConfigError(f"the network has no layer {layer!r} (its last ones: {', '.join(names[-8:])})")
        if passes < 2:
            raise ConfigError(f"passes must be at least 2 for a standard deviation, got {passes}")
        self.net, self.layer, self.passes, self.seed = net, layer, passes, seed
        self.calibration = Calibration(temperature, intercept)
        self.amp_dtype = amp_dtype
        self.dropouts = [m for m in net.modules() if isinstance(m, _ELEMENTS + _CHANNELS) and m.p > 0]
        if not self.dropouts:
            raise ModelError(
                "the network has no dropout to sample, so its maps have no uncertainty (dropouts are nn.Dropout, 1d to 3d, "
                "with p above 0)"
            )

    def __call__(
        self, x: Tensor, target: Target = "predicted", *, threshold_logit: float = 0.0, zones: Tensor | None = None
    ) -> Explanation:
        """Explain images; arguments as for `BayesGradCAM`.

        Raises:
            ConfigError: if the target has another name.
            ModelError: if layer or network do not return what the class says.
        """
        maps = self.evidence(x)
        if zones is None:
            size = (maps.signed.shape[-2], maps.signed.shape[-1])
            zones = image_zones(size, (x.shape[-2], x.shape[-1]), x.device)
        return maps.explain(target_sign(maps.logit, target, threshold_logit), zones, self.calibration)

    def evidence(self, x: Tensor) -> SampledMaps:
        """Return the signed maps of the network itself and of all passes, before a class is chosen."""
        with eval_mode(self.net):
            found = [self._pass(x, number) for number in (None, *range(self.passes))]
        signed = torch.stack([maps for maps, _ in found], 1)
        logits = torch.stack([logit for _, logit in found], 1)
        return SampledMaps(signed, logits - signed.sum((2, 3)))

    def evidence_of_maps(self, maps: Tensor) -> SampledMaps:
        """Refuse feature maps, which are not enough here.

        Raises:
            ModelError: always.
        """
        raise ModelError("feature maps are not enough for Grad-CAM by autograd; call the engine with images instead")

    def _pass(self, x: Tensor, number: int | None) -> tuple[Tensor, Tensor]:
        """Return the signed map [B, h, w] and the logit [B] of a pass; None is the network itself."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: object) -> Tensor:
            if not isinstance(output, Tensor) or output.ndim != 4:
                raise ModelError(
                    f"layer {self.layer!r} does not return feature maps [B, K, h, w]; choose another layer"
                )
            height, width = output.shape[2:]
            if height != width and x.shape[-2] == x.shape[-1]:
                raise ModelError(
                    f"layer {self.layer!r} returns {list(output.shape[1:])} for a square image, so its channels are last; choose a "
                    "layer that returns [B, K, h, w], such as the permutation behind it"
                )
            found.append(output.detach().requires_grad_())  # the backward pass ends here
            return found[-1].clone()  # what follows may change it in place, as the ReLU of DenseNet does

        # A caller may be in inference mode, whose tensors autograd cannot use.
        masks = [] if number is None else [self._mask(place, number) for place in range(len(self.dropouts))]
        layer = self.net.get_submodule(self.layer)
        with torch.inference_mode(False), torch.enable_grad(), _hooked(layer, keep), _masked(self.dropouts, masks):
            with self._autocast(x.device):
                logit = _logit(self.net(x.clone() if x.is_inference() else x), len(x))
            if len(found) != 1:
                raise ModelError(
                    f"layer {self.layer!r} runs {len(found)} times in a forward pass; choose one that runs once"
                )
            (gradient,) = torch.autograd.grad(logit.sum(), found[0])
        signed = (gradient.float().mean((2, 3), keepdim=True) * found[0].detach().float()).sum(1)
        return signed, logit.detach().float()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self.amp_dtype is None else torch.autocast(device.type, self.amp_dtype)

    def _mask(self, place: int, number: int) -> Callable[[Tensor], Tensor]:
        """Return what multiplies the output of a dropout in a pass: one mask for all images."""
        layer = self.dropouts[place]
        whole = isinstance(layer, _CHANNELS)

        def multiply(x: Tensor) -> Tensor:
            shape = (x.shape[1], *[1] * (x.ndim - 2)) if whole else x.shape[1:]
            seed = (self.seed * 1_000_003 + number) * 1_000_003 + place
            kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed % 2**63)) >= layer.p
            return x * (kept.to(x.device, x.dtype) / (1 - layer.p))

        return multiply


def _logit(output: object, batch: int) -> Tensor:
    """Return the logit of pneumonia [B] of what a network returned.

    Raises:
        ModelError: if it is no logit.
    """
    if isinstance(output, Tensor) and output.ndim <= 2 and len(output) == batch:
        if output.ndim == 1:
            return output
        if output.shape[1] == 1:
            return output[:, 0]
        if output.shape[1] == 2:
            return output[:, 1] - output[:, 0]
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ModelError(f"the network returns {shape}; its output must be logits [B], [B, 1] or [B, 2]")


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    """Change what a module returns while the block runs."""
    handle: RemovableHandle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _masked(layers: Sequence[nn.Module], masks: Sequence[Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Let dropouts in eval mode multiply by masks while the block runs; without masks they stay the identity."""
    with ExitStack() as stack:
        for layer, mask in zip(layers, masks, strict=bool(masks)):
            stack.enter_context(_hooked(layer, lambda module, args, output, mask=mask: mask(output)))
        yield
