"""How a grey image becomes the network's input, the same in training, scoring and explaining."""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from pneumo_ray.config import require, require_one_of
from pneumo_ray.images.fit import MARGIN, Fit
from pneumo_ray.model.weights import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of a grey image to the network's input, the same in training, scoring and explaining."""

    image_size: int = 224
    """Height and width of the network's input, in pixels; with `squash` a centre crop."""
    resize_size: int = 256
    """Height and width that the image is resized to before the crop, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each channel after the division by 255."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides each channel after the mean is subtracted."""
    fit: Fit = "squash"
    """How an image is fitted into the input. With `pad` and `lungs` it is a window of the image (`framing.window_of`) at
    image_size, and no centre crop; bundles without this field are of `squash`."""
    margin: float = MARGIN
    """With `lungs`, the margin around them, as a share of their box's longer true side."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: if the crop is larger than the image, the mean and std are not three usable numbers, or there is
                no such fit or margin.
        """
        require_one_of("fit", self.fit, get_args(Fit))
        require(0 <= self.margin <= 1, f"margin must be between 0 and 1, got {self.margin}")
        require(
            0 < self.image_size <= self.resize_size,
            f"image_size must be positive and at most resize_size, got {self.image_size} and {self.resize_size}",
        )
        require(
            len(self.mean) == 3 and all(math.isfinite(value) for value in self.mean),
            f"mean must be three finite numbers, got {self.mean}",
        )
        require(
            len(self.std) == 3 and all(0 < value < math.inf for value in self.std),
            f"std must be three positive numbers, got {self.std}",
        )

    def normalise(self, batch: Tensor, *, channels_last: bool = False) -> Tensor:
        """Turn grey images into the network's input: (x / 255 - mean) / std, the grey in all three channels.

        It is one multiply-add per value, without a copy of the image for each channel.

        Args:
            batch: uint8 [B, H, W] on any device.
            channels_last: lay the result out as B, H, W, 3, which convolutions prefer on many devices.

        Returns:
            float32 [B, 3, H, W] on the same device.

        Raises:
            ValueError: if the batch is not uint8 [B, H, W].
        """
        if batch.dtype != torch.uint8 or batch.ndim != 3:
            raise ValueError(f"expected uint8 [B, H, W], got {batch.dtype} {list(batch.shape)}")
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=batch.device).view(1, 3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=batch.device)
        num_images, height, width = batch.shape
        result = torch.empty(
            (num_images, 3, height, width),
            device=batch.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        return torch.addcmul(shift.view(1, 3, 1, 1), batch.unsqueeze(1).float(), scale, out=result)
