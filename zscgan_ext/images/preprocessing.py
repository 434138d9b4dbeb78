"""What a classifier expects of its input."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.errors import InputError
from zscgan_ext.images.limits import LARGEST_IMAGE_SIZE, ImageSize, shortest, sides

LARGEST = torch.finfo(torch.float32).max  # in which images are normalized


def is_finite(value: float) -> bool:
    """Return True if a number can be a finite one in float32; integers can be too large."""
    return abs(value) <= LARGEST


def size_before_cropping(size: int) -> int:
    """Return the least side, in pixels, of a picture whose centre is cropped to a size."""
    return round(size * 256 / 224)


@dataclass(frozen=True)
class Preprocessing:
    """Input shape and normalization: `(pixel / 255 - mean) / std` per channel."""

    channels: int
    image_size: ImageSize  # pixels; height and width where they differ
    mean: tuple[float, ...]  # in units of a pixel range of 0 to 1
    std: tuple[float, ...]  # in units of a pixel range of 0 to 1
    # Whether nobody said how the classifier's input is normalized.
    is_assumed: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        """Require what can be computed with.

        Raises:
            InputError: naming what cannot.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(map(is_finite, values)):
                raise InputError(
                    f"{name}: expected {self.channels} finite numbers, one for each channel, "
                    f"got {values}"
                )
        if min(self.std) <= 0:
            raise InputError(f"std: expected numbers above 0, got {min(self.std)}")
        if not all(map(is_finite, self.input_range())):
            raise InputError(
                f"mean, std: {self.mean} and {self.std} normalize images to numbers beyond float32"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image, (C, H, W)."""
        return self.channels, *sides(self.image_size)

    @property
    def pixels(self) -> int:
        """The pixels of one image."""
        return math.prod(sides(self.image_size))

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn pixels, uint8 [N, C, H, W], into the classifier's input, float32 [N, C, H, W]."""
        scaled = pixels.to(torch.float32) / 255
        return (scaled - self._per_channel(self.mean, pixels)) / self._per_channel(self.std, pixels)

    def black_and_white(self, device: torch.device) -> Tensor:
        """Return black and white pixels as the classifier's input has them, [2, C, 1, 1]."""
        pixels = torch.tensor([0, 255], dtype=torch.uint8, device=device).view(2, 1, 1, 1)
        return self.normalize(pixels.expand(2, self.channels, 1, 1))

    def metadata(self) -> dict[str, Any]:
        """Return what `preprocessing_from` reads, as JSON's types."""
        return {
            "channels": self.channels,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def input_range(self) -> tuple[float, float]:
        """Return the least and the largest number that the classifier's input may hold.

        Where the normalization is assumed the range is twice as wide: to cut off what images hold
        costs more than one bit of eight.
        """
        ends = [(p - m) / s for m, s in zip(self.mean, self.std, strict=True) for p in (0, 1)]
        low, high = min(ends), max(ends)
        margin = (high - low) / 2 if self.is_assumed else 0.0
        return low - margin, high + margin

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Turn the classifier's input back into pixels between 0 and 1, float32 [N, C, H, W]."""
        pixels = inputs * self._per_channel(self.std, inputs) + self._per_channel(self.mean, inputs)
        return pixels.clamp(0, 1)


def preprocessing_from(metadata: Any) -> Preprocessing:
    """Read a file's metadata of a classifier's input.

    Args:
        metadata: `channels`, `image_size`, `mean` and `std`, as JSON's types.

    Raises:
        ValueError, TypeError, KeyError: if it is something else, or cannot be.
    """
    channels, size = metadata["channels"], metadata["image_size"]
    mean, std = (tuple(map(float, metadata[name])) for name in ("mean", "std"))
    if not isinstance(channels, int) or not len(mean) == len(std) == channels > 0:
        raise ValueError(f"{channels!r} channels, {len(mean)} means, {len(std)} deviations")
    both = size if isinstance(size, list | tuple) else [size, size]
    if len(both) != 2 or not all(
        isinstance(side, int) and 0 < side <= LARGEST_IMAGE_SIZE for side in both
    ):
        raise ValueError(f"image_size {size!r}, accepted is 1 to {LARGEST_IMAGE_SIZE}")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"mean {mean} and standard deviation {std}")
    return Preprocessing(channels, shortest(*both), mean, std)
