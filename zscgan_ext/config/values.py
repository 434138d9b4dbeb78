"""Settings that are given as text, and what they mean: widths, formats, intervals, devices."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zscgan_ext.errors import InputError, did_you_mean
from zscgan_ext.process_environment import local_rank

if TYPE_CHECKING:
    import torch

EXPORT_FORMATS = ("onnx", "pt2", "safetensors")
EVALUATION_BATCH = 250  # images, where evaluation is told no other number


def parse_bits(text: str) -> tuple[int, int]:
    """Read widths like `w4a8` as (4, 8): bits of the weights, bits of the activations.

    Raises:
        InputError: if the text has another form or a width is not between 2 and 8.
    """
    match = re.fullmatch(r"w([2-8])a([2-8])", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise InputError(f"bits: expected w2a2 to w8a8, such as w4a4 or w4a8, got {text!r}")
    return int(match[1]), int(match[2])


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
    match = re.fullmatch(r"(\d+)|(\d+|\d*\.\d+)min", text, re.ASCII)
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
    import torch  # takes seconds, and help and wrong arguments need none of it

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "cpu" or (text == "auto" and not count):
        return torch.device("cpu")
    index = int(text.removeprefix("auto").removeprefix("cuda").removeprefix(":") or local_rank())
    if index >= count:
        raise InputError(f"device: torch finds {count or 'no'} CUDA device(s), got {text!r}")
    return torch.device("cuda", index)
