"""What images may be at most, and how their size is written."""

from typing import Any

from zscgan_ext.json_values import Check, integer, list_of

LARGEST_IMAGE_SIZE = 4096  # pixels
ImageSize = int | tuple[int, int]  # pixels: height and width of square images, or both


def sides(size: ImageSize) -> tuple[int, int]:
    """Return height and width, pixels."""
    return (size, size) if isinstance(size, int) else size


def shortest(height: int, width: int) -> ImageSize:
    """Return a size as one number where both sides are equal."""
    return height if height == width else (height, width)


def size_text(size: ImageSize) -> str:
    """Write a size as the command line has it."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def size_check() -> Check:
    """Return a check of JSON that takes a size: an integer, or height and width."""
    side = integer(1, LARGEST_IMAGE_SIZE)
    both = list_of(side, 2)

    def check(value: Any) -> Any:
        return shortest(*both(value)) if isinstance(value, list) else side(value)

    return check
