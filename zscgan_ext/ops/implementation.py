"""Which kernels run: the native core, or the plain torch reference.

The environment variable `ZSCGAN_EXT_IMPL` decides: `auto` (default) takes the native core and falls
back to the reference with one warning that says why; `native` makes that an error; `reference`
takes plain torch.
"""

import importlib
import os
import warnings
from types import ModuleType

import torch

from zscgan_ext.errors import InputError

CHOICES = ("auto", "native", "reference")
CPU_DATA_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_native() -> tuple[ModuleType | None, str | None]:
    """Import the native core: the module and None, or None and why it cannot be used."""
    try:
        return importlib.import_module("zscgan_ext._native"), None
    except ImportError as error:
        return None, str(error)


def requested_implementation() -> str:
    """Read `ZSCGAN_EXT_IMPL`.

    Raises:
        InputError: if it holds anything but auto, native or reference.
    """
    choice = os.environ.get("ZSCGAN_EXT_IMPL", "auto")
    if choice not in CHOICES:
        raise InputError(f"ZSCGAN_EXT_IMPL is {choice!r}, accepted are {', '.join(CHOICES)}")
    return choice


NATIVE, MISSING_REASON = load_native()
REQUESTED = requested_implementation()
if NATIVE is None and REQUESTED == "native":
    raise ImportError(f"ZSCGAN_EXT_IMPL=native, but the native core is missing: {MISSING_REASON}")
if NATIVE is None and REQUESTED == "auto":
    warnings.warn(
        f"zscgan_ext runs on plain torch, slower: its native core is missing ({MISSING_REASON})",
        RuntimeWarning,
        stacklevel=2,
    )


def uses_native(x: torch.Tensor) -> bool:
    """Tell whether the native core has a kernel for this tensor's device and dtype."""
    if NATIVE is None or REQUESTED == "reference":
        return False
    if x.is_cpu:
        return x.dtype in CPU_DATA_TYPES
    return x.is_cuda and x.dtype != torch.float64 and cuda_missing_reason() is None


def cuda_missing_reason() -> str | None:
    """Return None if the native CUDA kernels can run, or why they cannot."""
    if NATIVE is None:
        return MISSING_REASON
    reason: str | None = NATIVE.cuda_unavailable_reason()
    return reason
