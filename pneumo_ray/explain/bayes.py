"""BayesGrad-CAM: Grad-CAM under a posterior of the weights (arXiv 2507.18647; Gal and Ghahramani 2016, arXiv 1506.02142).

With dropout between pooling and the linear layer, pass t is `ReLU(sum_k w_k z_tk A_k / (h w))` with z the scaled mask,
so all passes are one matrix product on the feature maps of a single forward. So are those of any other posterior over the
head (`explain/posterior.py`), and its moments need no pass at all. With dropout inside the last stage, of channels or of
attention's keys (arXiv 2208.02646), only the network's `tail` is repeated. All images share what is drawn from the seed: results do not depend on how images are batched,
ordered or spread over workers.
"""

import contextlib

import torch
from torch import Tensor, nn

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.explain.cam import target_sign
from pneumo_ray.explain.explanation import EXACT, Explanation
from pneumo_ray.explain.fused import shares, watched
from pneumo_ray.explain.masks import DEFAULT_PASSES, draw_masks
from pneumo_ray.explain.normal import NormalMaps
from pneumo_ray.explain.posterior import DropoutPosterior, HeadPosterior
from pneumo_ray.explain.sampled import SampledMaps
from pneumo_ray.explain.tail import eval_mode, tail_passes
from pneumo_ray.explain.target import MapKind, Passes, Target
from pneumo_ray.explain.zones import image_zones
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.model.network import PneumoniaNet
from pneumo_ray.model.signed_map import signed_maps

Evidence = SampledMaps | NormalMaps
"""The signed maps of some images and how they vary, before a class is chosen."""


class BayesGradCAM:
    """Explain images with a network and a posterior of its weights: by default the dropout that it was trained with.

    The network may be in any mode and is left in it; BatchNorm never leaves eval. It may be wrapped in
    DistributedDataParallel or `torch.compile` (the wrapper is then bypassed).

    Args:
        net: the network; what is drawn follows it to its device.
        passes: Monte Carlo passes T, at least 2; None takes `DEFAULT_PASSES` of the network's site. At 20 the standard
            error of a mean is at most 0.22 standard deviations and that of a standard deviation 16 to 25 %, at 200 they
            are 0.07 and 5 to 7 %. `exact` takes the closed forms of a posterior over the head, without random numbers.
        seed: of what is drawn, on the CPU, and so the same on every device.
        temperature: probabilities are `sigmoid(logit / temperature + intercept)`; logits and maps stay raw.
        intercept: see `temperature`.
        amp_dtype: run the network under autocast to this type; None keeps the setting of the caller. Map arithmetic is
            float32 in any case.
        max_bytes: rough bound on the memory of the tail passes that run at once (sites `tail` and `keys`; at least one does).
        posterior: over the head; None takes the network's own dropout.
        exact_var: also compute `cam_exact_var`, which of a Laplace posterior costs a twentieth of a ResNet-50's forward.
        maps: of the last stage, or `fused` with the stage before (`explain/fused.py`), which needs images, not feature maps.

    Attributes:
        masks: what was drawn, float32. Of dropout scaled masks {0, 1 / (1 - p)}: [T, K] at site `head`; at the others a
            [T, U] for each layer of `net.tail_dropouts()`. They move to the device of the images. Empty for `exact`.

    Raises:
        ConfigError: if passes or max_bytes cannot work, or the temperature is not positive.
        ModelError: if the network is not a PneumoniaNet, has no dropout to sample, or has it where closed forms do not
            reach, or the posterior is of another network.

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
        passes: Passes | None = None,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        intercept: float = 0.0,
        amp_dtype: torch.dtype | None = None,
        max_bytes: int = 2**28,
        posterior: HeadPosterior | None = None,
        maps: MapKind = "last",
        exact_var: bool = True,
    ) -> None:
        """Draw what is drawn."""
        self.net, self.maps = _unwrapped(net), maps
        self.in_tail = posterior is None and self.net.config.dropout_site != "head"
        if passes is None:
            passes = DEFAULT_PASSES[self.net.config.dropout_site if self.in_tail else "head"]
        if passes == "exact" and self.in_tail:
            raise ModelError(
                "--passes exact needs a posterior over the head, and this model's dropout is inside the trunk; give a number of "
                "passes, or --posterior laplace where the model has one"
            )
        if passes != "exact" and passes < 2:
            raise ConfigError(f"passes must be at least 2 for a standard deviation, got {passes}")
        if not temperature > 0:
            raise ConfigError(f"temperature must be positive, got {temperature}")
        if max_bytes < 1:
            raise ConfigError(f"max_bytes must be positive, got {max_bytes}")
        self.passes = EXACT if passes == "exact" else passes
        self.calibration = Calibration(temperature, intercept)
        self.amp_dtype = amp_dtype
        self.max_bytes = max_bytes
        self._needs_root = exact_var or passes == "exact"
        generator = torch.Generator().manual_seed(seed)
        self.masks: list[Tensor] = []
        if self.in_tail:
            for layer in self.net.tail_dropouts():
                DropoutPosterior(layer.p)  # refuses a rate of 0
                self.masks.append(draw_masks(self.passes, layer.num_units, layer.p, generator))
            return
        self.posterior = DropoutPosterior(self.net.dropout.p) if posterior is None else posterior
        self.posterior.check(self.net.classifier.in_features)
        if self.passes != EXACT:
            self.masks.append(self.posterior.draw(self.passes, self.net.classifier.in_features, generator))

    @torch.inference_mode()
    def __call__(
        self, x: Tensor, target: Target = "predicted", *, threshold_logit: float = 0.0, zones: Tensor | None = None
    ) -> Explanation:
        """Explain images.

        Args:
            x: float32 [B, 3, H, W], ImageNet-normalised (`Preprocessing.normalise`), on the network's device.
            target: the class to explain; `predicted` is decided once per image, from its logit without a draw.
            threshold_logit: the operating point as a raw logit; `predicted` is pneumonia from there upwards.
            zones: [6, h w] from `zone_operator`, or [B, 6, h w] where every image has its box; default thirds by halves
                of the image.

        Returns:
            The explanation, h by w the size of the network's feature maps.

        Raises:
            ConfigError: if the target has another name.
        """
        return self._explained(self.evidence(x), (x.shape[-2], x.shape[-1]), target, threshold_logit, zones)

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
        """Explain images from their feature maps, which may come from a compiled trunk (posteriors over the head only).

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
        return self._explained(self.evidence_of_maps(maps), image_size, target, threshold_logit, zones)

    @torch.inference_mode()
    def evidence(self, x: Tensor) -> Evidence:
        """Return the signed maps of images and how they vary, before a class is chosen; images as for `__call__`."""
        if self.maps == "fused":
            return self._fused(x)
        if self.in_tail:
            return SampledMaps(self._tail(x), self.net.classifier.bias.float())
        return self.evidence_of_maps(self._feature_maps(x))

    def _fused(self, x: Tensor) -> Evidence:
        with watched(self.net, x.shape[-1]) as energies:
            found = self._tail(x) if self.in_tail else self._feature_maps(x)
        if not self.in_tail:
            return self._of_maps(found, energies[0])
        with torch.autocast(x.device.type, enabled=False):
            divided = found.flatten(2) @ shares(energies[0], found.shape[2:]).mT
        return SampledMaps(divided.unflatten(2, energies[0].shape[1:]), self.net.classifier.bias.float())

    @torch.inference_mode()
    def evidence_of_maps(self, maps: Tensor) -> Evidence:
        """Return the same from feature maps; arguments and errors as for `explain_maps`."""
        if self.in_tail:
            raise ModelError(
                f"feature maps lie behind the dropout of dropout_site={self.net.config.dropout_site!r}; call the engine with "
                "images instead"
            )
        if self.maps == "fused":
            raise ModelError(
                "feature maps know nothing of the stage before; call the engine with images for fused maps"
            )
        return self._of_maps(maps)

    def _of_maps(self, maps: Tensor, energy: Tensor | None = None) -> Evidence:
        """Return the evidence of feature maps, divided among the finer cells of energy [B, h', w'] where that is given."""
        size = maps.shape[2:]
        with torch.autocast(maps.device.type, enabled=False):
            maps, theta = maps.float(), self._theta()
            root = None
            if self._needs_root:
                root = self.posterior.root(theta, maps.flatten(2).mT / (size[0] * size[1]))
            samples = self._samples(theta)
            signed = signed_maps(maps, samples[:, :-1])
            if energy is not None:
                divided, size = shares(energy, size), energy.shape[1:]
                root = None if root is None else divided @ root
                signed = (signed.flatten(2) @ divided.mT).unflatten(2, size)
            if root is None:
                return SampledMaps(signed, samples[:, -1])
            if self.passes == EXACT:
                only_bias = torch.zeros_like(theta)
                only_bias[-1] = 1
                of_logit = root.sum(1) + self.posterior.root(theta, only_bias)
                return NormalMaps(signed[:, 0], theta[-1], root, of_logit.square().sum(1))
            return SampledMaps(signed, samples[:, -1], root.square().sum(2).unflatten(1, size))

    def logits(self, x: Tensor) -> Tensor:
        """Return raw logits alone: what a calibration and a threshold are fitted on.

        Args:
            x: float32 [B, 3, H, W], ImageNet-normalised, on the network's device.

        Returns:
            float32 [B, 1 + T], the first without a draw.
        """
        return self.logits_and_map(x)[0]

    @torch.inference_mode()
    def logits_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the raw logits of all passes, and the signed map of the first.

        Args:
            x: float32 [B, 3, H, W], ImageNet-normalised, on the network's device.

        Returns:
            Logits float32 [B, 1 + T], the first without a draw; and its signed map float32 [B, h, w], in logit units.
        """
        if self.in_tail:
            signed = self._tail(x)
            return signed.sum((2, 3)) + self.net.classifier.bias.float(), signed[:, 0]
        maps = self._feature_maps(x)
        with torch.autocast(x.device.type, enabled=False):
            samples = self._samples(self._theta())
            logits = maps.float().mean((2, 3)) @ samples[:, :-1].mT + samples[:, -1]
        return logits, signed_maps(maps, self.net.classifier.weight)[:, 0]

    def _theta(self) -> Tensor:
        """Return the classifier's own weights and bias, float32 [K + 1]."""
        classifier = self.net.classifier
        return torch.cat([classifier.weight[0].float(), classifier.bias.float()])

    def _samples(self, theta: Tensor) -> Tensor:
        """Return the head without and with each draw, float32 [1 + T, K + 1]."""
        if self.passes == EXACT:
            return theta[None]
        self._move_masks(theta.device)
        return torch.cat([theta[None], self.posterior.samples(theta, self.masks[0])])

    def _feature_maps(self, x: Tensor) -> Tensor:
        with eval_mode(self.net), self._autocast(x.device):
            return self.net.feature_maps(x)

    def _tail(self, x: Tensor) -> Tensor:
        self._move_masks(x.device)
        with self._autocast(x.device):
            return tail_passes(self.net, x, self.masks, self.max_bytes)

    def _explained(
        self,
        evidence: Evidence,
        image_size: tuple[int, int],
        target: Target,
        threshold_logit: float,
        zones: Tensor | None,
    ) -> Explanation:
        logit = evidence.logit
        if zones is None:
            zones = image_zones((evidence.signed.shape[-2], evidence.signed.shape[-1]), image_size, logit.device)
        return evidence.explain(target_sign(logit, target, threshold_logit), zones, self.calibration)

    def _move_masks(self, device: torch.device) -> None:
        if self.masks and self.masks[0].device != device:
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
