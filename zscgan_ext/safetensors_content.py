"""Safetensors files, read as all others are.

The library's own reader maps a file into memory: if another program shortens the file meanwhile,
the process is ended where it looks at what was cut off.
"""

import json
import os
from pathlib import Path

import safetensors.torch
from torch import Tensor

from zscgan_ext.regular_file import open_regular_file, read_regular_file

LARGEST = 1 << 40  # bytes of a file
LARGEST_HEADER = 1 << 26  # bytes, of which the metadata are read
LENGTH = 8  # bytes that hold the length of the header, which is JSON


def tensors_and_metadata(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, on the CPU and in their order, and the metadata of a safetensors file.

    Raises:
        Exception: nearly any, if it is damaged.
    """
    tensors = safetensors.torch.load(data)  # checks the header
    header = json.loads(data[LENGTH : LENGTH + int.from_bytes(data[:LENGTH], "little")])
    metadata = header.pop("__metadata__", None) or {}
    return {name: tensors[name] for name in header}, metadata


def read_safetensors_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, on the CPU, and the metadata of a safetensors file.

    Raises:
        Exception: nearly any, if it cannot be read or is damaged.
    """
    return tensors_and_metadata(read_regular_file(file, LARGEST))


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, whose tensors are not read.

    Raises:
        Exception: nearly any, if it cannot be read or is damaged.
    """
    descriptor = open_regular_file(file)
    with os.fdopen(descriptor, "rb") as stream:
        length = int.from_bytes(stream.read(LENGTH), "little")
        if length > min(LARGEST_HEADER, os.fstat(descriptor).st_size):
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(stream.read(length))
    metadata: dict[str, str] = header.get("__metadata__") or {}
    return metadata
