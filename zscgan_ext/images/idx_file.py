"""One idx file, the format of MNIST, as an array."""

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from zscgan_ext.errors import InputError
from zscgan_ext.regular_file import regular_file_size

LARGEST_IDX = 1 << 32  # bytes
IDX_DIMENSIONS = range(1, 5)


def read_idx(file: Path) -> np.ndarray:
    """Read one idx file of unsigned bytes, gzipped or not, as a uint8 array.

    No more is unpacked than the header announces.

    Raises:
        InputError: if the file cannot be read, is truncated, too large or holds another type.
    """
    opened: Callable[[Path, Literal["rb"]], Any] = gzip.open if file.suffix == ".gz" else open
    try:
        regular_file_size(file)
        with opened(file, "rb") as stream:
            shape = read_idx_shape(file, stream)
            size = math.prod(shape)
            data = stream.read(size)
            is_longer = bool(stream.read(1))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read as an idx file ({error})") from None
    if len(data) < size or is_longer:
        found = "longer" if is_longer else "truncated"
        raise InputError(f"{file}: {found}, its header announces shape {shape}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape).copy()


def read_idx_shape(file: Path, stream: BinaryIO) -> tuple[int, ...]:
    """Read the header of an idx file.

    Raises:
        InputError: if it is none, or announces more than is accepted.
    """
    start = stream.read(4)
    if len(start) < 4 or start[:3] != b"\x00\x00\x08" or start[3] not in IDX_DIMENSIONS:
        raise InputError(f"{file}: not an idx file of unsigned bytes")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise InputError(f"{file}: truncated in its header")
    shape = tuple(int(n) for n in np.frombuffer(sizes, dtype=">u4"))
    if math.prod(max(size, 1) for size in shape) > LARGEST_IDX:  # an empty array counts too
        raise InputError(
            f"{file}: its header announces shape {shape}, accepted are up to {LARGEST_IDX:,} bytes"
        )
    return shape
