"""What a phantom archive is drawn from."""

from dataclasses import dataclass

from pneumo_ray.config import require


@dataclass(frozen=True)
class PhantomConfig:
    """An archive of phantom radiographs."""

    num_images: int = 1200
    """Radiographs in the archive, test folder included."""
    image_size: int = 320
    """Width in pixels; heights vary between 0.8 and 1.1 times this."""
    pneumonia_fraction: float = 0.6
    """Share of the images that show pneumonia."""
    difficulty: float = 0.5
    """How faint the opacities are: 0 is obvious, 1 is barely visible."""
    seed: int = 0
    """Seed of every draw; the same config writes the same bytes."""
    images_per_patient: float = 1.5
    """Mean number of images of one patient, 1 to 3; they share the body but not the position or the exposure."""

    def __post_init__(self) -> None:
        """Refuse values that cannot make an archive."""
        check_drawing("phantom.", self.seed, self.image_size, self.difficulty)
        require(
            0 < self.pneumonia_fraction < 1,
            f"phantom.pneumonia_fraction must lie between 0 and 1, got {self.pneumonia_fraction}",
        )
        require(
            1 <= self.images_per_patient <= 3,
            f"phantom.images_per_patient must lie between 1 and 3, got {self.images_per_patient}",
        )
        # A patient has at most three images, so four are two patients: one to train on and one to test on.
        require(
            min(self.class_counts) >= 4,
            f"phantom.num_images is {self.num_images}, too few for four images of each class at "
            f"phantom.pneumonia_fraction {self.pneumonia_fraction}; raise it",
        )

    @property
    def class_counts(self) -> tuple[int, int]:
        """The numbers of normal and of pneumonia images."""
        pneumonia = round(self.num_images * self.pneumonia_fraction)
        return self.num_images - pneumonia, pneumonia


def check_drawing(prefix: str, seed: int, image_size: int, difficulty: float) -> None:
    """Refuse what no radiograph can be drawn from.

    Args:
        prefix: before the names of the options in the sentence.
        seed: of every draw.
        image_size: width in pixels.
        difficulty: how faint the opacities are.

    Raises:
        ConfigError: if one is out of its range.
    """
    require(0 <= seed < 2**63, f"{prefix}seed must lie between 0 and 2**63 - 1, got {seed}")
    require(64 <= image_size <= 4096, f"{prefix}image_size must lie between 64 and 4096 pixels, got {image_size}")
    require(0 <= difficulty <= 1, f"{prefix}difficulty must lie between 0 and 1, got {difficulty}")
