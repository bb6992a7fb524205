"""BayesGrad-CAM: Grad-CAM under Monte Carlo dropout (arXiv 2507.18647; Gal and Ghahramani 2016, arXiv 1506.02142).

With dropout between pooling and the linear layer, pass t is `ReLU(sum_k w_k z_tk A_k / (h w))` with z the scaled mask,
so all passes are one matrix product on the feature maps of a single forward. With dropout inside the last stage only
the network's `tail` is repeated. All images share one set of masks, drawn from the seed: results do not depend on
how images are batched, ordered or spread over workers.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.explain.cam import target_sign
from pneumo_ray.explain.explanation import Explanation
from pneumo_ray.explain.masks import DEFAULT_PASSES, draw_masks, group_sizes
from pneumo_ray.explain.target import Target
from pneumo_ray.explain.zones import zone_operator
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.model.network import ChannelDropout, PneumoniaNet
from pneumo_ray.model.signed_map import signed_maps

# What the tail holds at its peak, input included, in multiples of its input as float32: measured 4 (ResNeXt-50) to 10
# (EfficientNet-B0), plus what the convolution library takes for the weights.
_TAIL_PEAK = 10


class BayesGradCAM:
    """Explain images with a network and the dropout that it was trained with.

    The network may be in any mode and is left in it; BatchNorm never leaves eval. It may be wrapped in
    DistributedDataParallel or `torch.compile` (the wrapper is then bypassed).

    Args:
        net: the network; its masks follow it to its device.
        passes: Monte Carlo passes T, at least 2; None takes `DEFAULT_PASSES` of the network's site. At 20 the standard
            error of a mean is at most 0.22 standard deviations and that of a standard deviation about 16 %, at 200 they
            are 0.07 and 5 %.
        seed: of the masks, which are drawn on the CPU and so are the same on every device.
        temperature: probabilities are `sigmoid(logit / temperature + intercept)`; logits and maps stay raw.
        intercept: see `temperature`.
        amp_dtype: run the network under autocast to this type; None keeps the setting of the caller. Map arithmetic is
            float32 in any case.
        max_bytes: rough bound on the memory of the tail passes that run at once (site `tail`; at least one does).

    Attributes:
        masks: scaled masks {0, 1 / (1 - p)}, float32: [T, K] at site `head`; at site `tail` a [T, C] for each layer of
            `net.tail_dropouts()`. They move to the device of the images.

    Raises:
        ConfigError: if passes or max_bytes cannot work, or the temperature is not positive.
        ModelError: if the network is not a PneumoniaNet or has no dropout to sample.

    Example:
        >>> from pneumo_ray.model import ModelConfig, PneumoniaNet
        >>> net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none", dropout=0.5))
        >>> e = BayesGradCAM(net, passes=20)(torch.randn(2, 3, 64, 64))
        >>> e.cam_std.shape, e.zone_mean.shape
        (torch.Size([2, 2, 2]), torch.Size([2, 6]))
    """

    def __init__(
        self,
        net: nn.Module,
        passes: int | None = None,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        intercept: float = 0.0,
        amp_dtype: torch.dtype | None = None,
        max_bytes: int = 2**28,
    ) -> None:
        """Draw the masks."""
        self.net = _unwrapped(net)
        if passes is None:
            passes = DEFAULT_PASSES[self.net.config.dropout_site]
        if passes < 2:
            raise ConfigError(f"passes must be at least 2 for a standard deviation, got {passes}")
        if not temperature > 0:
            raise ConfigError(f"temperature must be positive, got {temperature}")
        if max_bytes < 1:
            raise ConfigError(f"max_bytes must be positive, got {max_bytes}")
        self.passes = passes
        self.calibration = Calibration(temperature, intercept)
        self.amp_dtype = amp_dtype
        self.max_bytes = max_bytes
        self._layers = self.net.tail_dropouts() if self.net.config.dropout_site == "tail" else []
        shapes = [(layer.num_channels, layer.p) for layer in self._layers]
        if not self._layers:
            shapes = [(self.net.classifier.in_features, self.net.dropout.p)]
        if any(rate == 0 for _, rate in shapes):
            raise ModelError(
                "the network has no dropout to sample, so its maps have no uncertainty; "
                "train one with model.dropout above 0"
            )
        generator = torch.Generator().manual_seed(seed)
        self.masks = [draw_masks(passes, num, rate, generator) for num, rate in shapes]

    @torch.inference_mode()
    def __call__(
        self, x: Tensor, target: Target = "predicted", *, threshold_logit: float = 0.0, zones: Tensor | None = None
    ) -> Explanation:
        """Explain images.

        Args:
            x: float32 [B, 3, H, W], ImageNet-normalised (`Preprocessing.normalise`), on the network's device.
            target: the class to explain; `predicted` is decided once per image, from its logit without dropout.
            threshold_logit: the operating point as a raw logit; `predicted` is pneumonia from there upwards.
            zones: [6, h w] from `zone_operator`, or [B, 6, h w] where every image has its box; default thirds by halves
                of the image.

        Returns:
            The explanation, h by w the size of the network's feature maps.

        Raises:
            ConfigError: if the target has another name.
        """
        height, width = x.shape[-2:]
        if self._layers:
            signed = self._tail_passes(x)
            return self._summary(signed, (height, width), target, threshold_logit, zones)
        with eval_mode(self.net), self._autocast(x.device):
            maps = self.net.feature_maps(x)
        return self.explain_maps(maps, (height, width), target, threshold_logit=threshold_logit, zones=zones)

    @torch.inference_mode()
    def explain_maps(
        self,
        maps: Tensor,
        image_size: tuple[int, int],
        target: Target = "predicted",
        *,
        threshold_logit: float = 0.0,
        zones: Tensor | None = None,
    ) -> Explanation:
        """Explain images from their feature maps, which may come from a compiled trunk (site `head` only).

        Args:
            maps: A [B, K, h, w], as `net.feature_maps` returns in eval mode; any floating type.
            image_size: rows and columns of the images, in pixels; unused where zones are given.
            target: as for images.
            threshold_logit: as for images.
            zones: as for images.

        Returns:
            The explanation.

        Raises:
            ConfigError: if the target has another name.
            ModelError: if the dropout is in the tail, which feature maps are behind.
        """
        if self._layers:
            raise ModelError(
                "feature maps lie behind the dropout of dropout_site='tail'; call the engine with images instead"
            )
        maps = maps.float()
        height, width = maps.shape[2:]
        weight = self.net.classifier.weight.float()
        self._move_masks(maps.device)
        signed = signed_maps(maps, self._head_weights())
        rate = self.net.dropout.p
        spread = weight.square() * (rate / (1 - rate) / (height * width))
        exact_var = signed_maps(maps.square(), spread)[:, 0]
        return self._summary(signed, image_size, target, threshold_logit, zones, exact_var)

    def logits(self, x: Tensor) -> Tensor:
        """Return raw logits alone: what a calibration and a threshold are fitted on.

        Args:
            x: float32 [B, 3, H, W], ImageNet-normalised, on the network's device.

        Returns:
            float32 [B, 1 + T], the first without dropout.
        """
        return self.logits_and_map(x)[0]

    @torch.inference_mode()
    def logits_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the raw logits of all passes, and the signed map of the first.

        Args:
            x: float32 [B, 3, H, W], ImageNet-normalised, on the network's device.

        Returns:
            Logits float32 [B, 1 + T], the first without dropout; and its signed map float32 [B, h, w], in logit units.
        """
        bias = self.net.classifier.bias.float()
        if self._layers:
            signed = self._tail_passes(x)
            return signed.sum((2, 3)) + bias, signed[:, 0]
        with eval_mode(self.net), self._autocast(x.device):
            maps = self.net.feature_maps(x)
        pooled = maps.float().mean((2, 3))
        self._move_masks(x.device)
        with torch.autocast(x.device.type, enabled=False):
            logits = pooled @ self._head_weights().mT + bias
        return logits, signed_maps(maps, self.net.classifier.weight)[:, 0]

    def _head_weights(self) -> Tensor:
        """Return the classifier's weights without and under each mask, float32 [1 + T, K]."""
        weight = self.net.classifier.weight.float()
        return torch.cat([weight, self.masks[0] * weight])

    def _tail_passes(self, x: Tensor) -> Tensor:
        """Return the signed maps of all passes, float32 [B, 1 + T, h, w], the first without dropout."""
        self._move_masks(x.device)
        # The pass without dropout is one more mask: all ones.
        masks = [torch.cat([torch.ones_like(mask[:1]), mask]) for mask in self.masks]
        batch = len(x)
        with contextlib.ExitStack() as stack:
            stack.enter_context(eval_mode(self.net))
            stack.enter_context(self._autocast(x.device))
            stack.enter_context(_restored_masks(self._layers))
            features = self.net.prefix(x)
            at_once = max(1, self.max_bytes // (_TAIL_PEAK * 4 * features.numel()))
            chunks = []
            for start in range(0, 1 + self.passes, at_once):
                stop = min(start + at_once, 1 + self.passes)
                for layer, mask in zip(self._layers, masks, strict=True):
                    layer.mask = mask[start:stop].repeat_interleave(batch, 0)
                # cat keeps channels_last, repeat and expand do not.
                maps = self.net.tail(torch.cat([features] * (stop - start)))
                signed = signed_maps(maps, self.net.classifier.weight)
                chunks.append(signed.unflatten(0, (stop - start, batch)))
        return torch.cat(chunks)[:, :, 0].transpose(0, 1)

    def _summary(
        self,
        signed: Tensor,
        image_size: tuple[int, int],
        target: Target,
        threshold_logit: float,
        zones: Tensor | None,
        exact_var: Tensor | None = None,
    ) -> Explanation:
        """Reduce the signed maps of all passes [B, 1 + T, h, w] over the passes."""
        height, width = signed.shape[2:]
        with torch.autocast(signed.device.type, enabled=False):
            logits = signed.sum((2, 3)) + self.net.classifier.bias.float()
            sign = target_sign(logits[:, 0], target, threshold_logit)
            signed = signed * sign[:, None, None, None]
            positive = signed.relu()
            cam_std, cam_mean = torch.std_mean(positive[:, 1:], dim=1)
            if zones is None:
                zones = _default_zones((height, width), image_size, signed.device)
            by_pass = positive[:, 1:].flatten(2) @ zones.mT
            zone_std, zone_mean = torch.std_mean(by_pass, dim=1)
            zone_groups = torch.stack([g.mean(1) for g in by_pass.split(group_sizes(self.passes), 1)], 1)
            logit_std, logit_mean = torch.std_mean(logits[:, 1:], dim=1)
            calibrated = self.calibration.logit(logits[:, 1:])
            prob_std, prob_mean = torch.std_mean(calibrated.sigmoid(), dim=1)
            rarer = torch.minimum(prob_mean, (-calibrated).sigmoid().mean(1))
            entropy = _binary_entropy(rarer)
            expected_entropy = _binary_entropy((-calibrated.abs()).sigmoid()).mean(1)
        return Explanation(
            passes=self.passes,
            target=(sign > 0).to(torch.int8),
            logit=logits[:, 0],
            logit_mean=logit_mean,
            logit_std=logit_std,
            prob_mean=prob_mean,
            prob_std=prob_std,
            entropy=entropy,
            expected_entropy=expected_entropy,
            mutual_information=(entropy - expected_entropy).clamp(min=0),
            cam_signed=signed[:, 0],
            cam=positive[:, 0],
            cam_mean=cam_mean,
            cam_std=cam_std,
            cam_exact_mean=None if exact_var is None else signed[:, 0],
            cam_exact_var=exact_var,
            zone_mean=zone_mean,
            zone_std=zone_std,
            zone_groups=zone_groups,
        )

    def _move_masks(self, device: torch.device) -> None:
        if self.masks[0].device != device:
            self.masks = [mask.to(device) for mask in self.masks]

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.amp_dtype)


def _unwrapped(net: nn.Module) -> PneumoniaNet:
    """Return the network inside DistributedDataParallel and `torch.compile`."""
    inner: object = net
    while not isinstance(inner, PneumoniaNet):
        inner = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        if inner is None:
            raise ModelError(
                f"BayesGrad-CAM needs the head of a PneumoniaNet, got {type(net).__name__}; "
                "build the network with pneumo_ray.model.build_model"
            )
    return inner


def _binary_entropy(rarer: Tensor) -> Tensor:
    """Return the entropy in nats of a binary variable from the probability of its rarer value, exact also near 0."""
    return -(torch.xlogy(rarer, rarer) + (1 - rarer) * torch.log1p(-rarer))


@functools.lru_cache(maxsize=16)
def _default_zones(map_size: tuple[int, int], image_size: tuple[int, int], device: torch.device) -> Tensor:
    return zone_operator(map_size, image_size).to(device)


@contextlib.contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put every module in eval mode and restore the mode of each module afterwards; modes may be mixed."""
    training = [module for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _restored_masks(layers: list[ChannelDropout]) -> Iterator[None]:
    """Restore the masks of the layers, also after an exception."""
    found = [layer.mask for layer in layers]
    try:
        yield
    finally:
        for layer, mask in zip(layers, found, strict=True):
            layer.mask = mask
