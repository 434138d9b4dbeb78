"""Settings that are given as text, and what they mean: widths, formats, intervals, devices."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zscgan_ext.errors import InputError, did_you_mean
from zscgan_ext.images.limits import LARGEST_IMAGE_SIZE, ImageSize, shortest
from zscgan_ext.process_environment import local_rank
from zscgan_ext.program import importing_libraries

if TYPE_CHECKING:
    import torch

EXPORT_FORMATS = ("onnx", "pt2", "safetensors")
AUTO = "auto"  # widths that a budget decides about
ACTIVATION_BITS_OF_AUTO = 8
FLOAT_LAYER = "float"
IMAGE_SET_FORMATS = ("npy", "png", "imagefolder", "torch")
LARGEST_COUNT, LARGEST_SEED = 2**31, 2**50  # of generated images
EVALUATION_BATCH = 250  # images, where evaluation is told no other number


def check_between(name: str, value: int, least: int, most: int) -> None:
    """Require a number in a range.

    Raises:
        InputError: naming it.
    """
    if not least <= value <= most:
        raise InputError(f"{name}: expected {least} to {most:,}, got {value}")


def parse_bits(text: str) -> tuple[int | None, int]:
    """Read widths like `w4a8` as (4, 8): bits of the weights, bits of the activations.

    Of `auto` and `wautoa8`, where a budget decides about the weights of each layer, their bits are
    None.

    Raises:
        InputError: if the text has another form or a width is not between 2 and 8.
    """
    if text.lower() == AUTO:
        return None, ACTIVATION_BITS_OF_AUTO
    match = re.fullmatch(r"w([2-8]|auto)a([2-8])", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise InputError(
            f"bits: expected w2a2 to w8a8, such as w4a4 or w4a8, got {text!r}; with auto or "
            "wautoa4 a budget decides about weights"
        )
    return None if match[1].lower() == AUTO else int(match[1]), int(match[2])


@dataclass(frozen=True)
class LayerBits:
    """The widths of one layer."""

    weights: int | None  # None: the layer stays in floats
    activations: int | None = None  # of what it reads; None: as without widths of its own

    def __str__(self) -> str:
        """Return the text that `parse_layer_bits` reads."""
        if self.weights is None:
            return FLOAT_LAYER
        return f"w{self.weights}" + ("" if self.activations is None else f"a{self.activations}")


def parse_layer_bits(text: str, setting: str = "layer_bits") -> LayerBits:
    """Read the widths of one layer: `w4`, `w4a8` or `float`.

    Raises:
        InputError: if the text has another form.
    """
    if text.lower() == FLOAT_LAYER:
        return LayerBits(None)
    match = re.fullmatch(r"w([2-8])(?:a([2-8]))?", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise InputError(f"{setting}: expected w2 to w8, w2a2 to w8a8, or float, got {text!r}")
    return LayerBits(int(match[1]), None if match[2] is None else int(match[2]))


def parse_layer_pattern(text: str) -> tuple[str, LayerBits]:
    """Read a pattern of names of layers and their widths, such as `features.0.*=w8a8`.

    Raises:
        InputError: if the text has another form.
    """
    pattern, equals, bits = text.rpartition("=")
    if not equals or not pattern:
        raise InputError(
            f"layer_bits: expected PATTERN=BITS, such as 'features.0.*=w8a8', got {text!r}"
        )
    return pattern, parse_layer_bits(bits)


def parse_image_size(value: "int | str | None") -> ImageSize | None:
    """Read a size like 224 or `96x192`, height and width in pixels; None for none.

    Raises:
        InputError: if the text has another form, or a side is out of range.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", value.strip(), re.ASCII)
    if match is None:
        raise InputError(
            "image_size: expected pixels such as 224, or height and width such as 96x192, "
            f"got {value!r}"
        )
    height = int(match[1])
    width = height if match[2] is None else int(match[2])
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST_IMAGE_SIZE:
        raise InputError(
            f"image_size: expected 1 to {LARGEST_IMAGE_SIZE:,} pixels for each side, got {value}"
        )
    return shortest(height, width)


def parse_formats(text: str) -> tuple[str, ...]:
    """Read formats of export like `onnx,safetensors`; nothing for `none`.

    Raises:
        InputError: if there is no such format.
    """
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    if names == ("none",):
        return ()
    for name in names:
        if name not in EXPORT_FORMATS:
            hint = did_you_mean(name, EXPORT_FORMATS)
            accepted = "onnx, pt2, safetensors, several with a comma between them, or none"
            raise InputError(f"export: expected {accepted}, got {name!r}{hint}")
    return names


@dataclass(frozen=True)
class Interval:
    """A number of steps, or else of seconds."""

    steps: int | None
    seconds: float = math.inf


def parse_interval(text: str) -> Interval | None:
    """Read `500` as steps, `10min` as minutes and `none` as None.

    Raises:
        InputError: if the text has another form.
    """
    if text.lower() == "none":
        return None
    match = re.fullmatch(r"(\d{1,18})|(\d{1,18}|\d{0,18}\.\d{1,18})min", text, re.ASCII)
    if match is None or float(match[1] or match[2]) == 0:
        raise InputError(
            f"checkpoint_every: expected steps like 500, minutes like 10min, or none, got {text!r}"
        )
    return Interval(int(match[1])) if match[1] else Interval(None, 60 * float(match[2]))


def resolve_device(text: str) -> "torch.device":
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that exists.

    Raises:
        InputError: if the text has another form, or there is no such CUDA device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text, re.ASCII):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {text!r}")
    with importing_libraries():
        import torch  # takes seconds, and help and wrong arguments need none of it

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "cpu" or (text == "auto" and not count):
        return torch.device("cpu")
    index = int(text.removeprefix("auto").removeprefix("cuda").removeprefix(":") or local_rank())
    if index >= count:
        raise InputError(f"device: torch finds {count or 'no'} CUDA device(s), got {text!r}")
    return torch.device("cuda", index)
