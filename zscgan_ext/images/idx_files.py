"""Idx files, the format of MNIST, as arrays."""

import gzip
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from zscgan_ext.errors import InputError
from zscgan_ext.regular_file import written_file_size

LARGEST_IDX = 1 << 32  # bytes
# What a gzipped file may unpack to: this many bytes, or this many times its own. Images of
# handwriting and clothes unpack to five times, mostly empty ones to twenty.
ALWAYS_UNPACKED, MOST_UNPACKED = 1 << 26, 64
IDX_DIMENSIONS = range(1, 5)
Split = Literal["train", "test"]


def read_idx(file: Path) -> np.ndarray:
    """Read one idx file of unsigned bytes, gzipped or not, as a uint8 array.

    No more is unpacked than the header announces.

    Raises:
        InputError: if the file cannot be read, is truncated, too large or holds another type.
    """
    opened: Callable[[Path, Literal["rb"]], Any] = gzip.open if file.suffix == ".gz" else open
    try:
        most = LARGEST_IDX
        packed = written_file_size(file)
        if file.suffix == ".gz":
            most = min(most, max(ALWAYS_UNPACKED, MOST_UNPACKED * packed))
        with opened(file, "rb") as stream:
            shape = read_idx_shape(file, stream, most)
            size = math.prod(shape)
            data = stream.read(size)
            is_longer = bool(stream.read(1))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read as an idx file ({error})") from None
    if len(data) < size or is_longer:
        found = "longer" if is_longer else "truncated"
        raise InputError(f"{file}: {found}, its header announces shape {shape}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape).copy()


def read_idx_shape(file: Path, stream: BinaryIO, most: int = LARGEST_IDX) -> tuple[int, ...]:
    """Read the header of an idx file.

    Args:
        file: its name.
        stream: its content.
        most: bytes that it may announce.

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
    if math.prod(max(size, 1) for size in shape) > most:  # an empty array counts too
        raise InputError(
            f"{file}: its header announces shape {shape}, accepted are up to {most:,} bytes"
        )
    return shape


def read_idx_pair(folder: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Read the images [N, H, W] and labels [N] of an idx folder.

    Args:
        folder: holds `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`, or those of one split.
        split: `train` or `test`.

    Raises:
        InputError: if a file is missing or damaged, or the numbers of images and labels differ.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{prefix}-{kind}-ubyte"
        candidates = [folder / f"{name}.gz", folder / name]
        file = next((path for path in candidates if os.path.lexists(path)), None)
        if file is None:
            raise InputError(f"{folder}: holds neither {name} nor {name}.gz")
        arrays.append(read_idx(file))
    images, labels = arrays
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(f"{folder}: images {images.shape} and labels {labels.shape} do not match")
    return images, labels
