"""Which kernels run: the native core, or the plain torch reference.

The environment variable `ZSCGAN_EXT_IMPL` decides: `auto` (default) takes the native core and falls
back to the reference with one warning that says why; `native` makes that an error; `reference`
takes plain torch.

`ZSCGAN_EXT_EMULATE_CUDA=1` is for tests: the CUDA kernels, built for the CPU, take tensors on the
CPU as if it were a GPU.
"""

import importlib
import os
import warnings
from types import ModuleType

import torch

from zscgan_ext.errors import InputError
from zscgan_ext.ops.layout import FLOATING

CHOICES = ("auto", "native", "reference")


def load_native() -> tuple[ModuleType | None, str | None]:
    """Import the native core: the module and None, or None and why it cannot be used."""
    try:
        return importlib.import_module("zscgan_ext._native"), None
    except ImportError as error:
        return None, str(error)


NATIVE, MISSING_REASON = load_native()
EMULATED: ModuleType | None = None
if os.environ.get("ZSCGAN_EXT_EMULATE_CUDA") == "1":
    EMULATED = importlib.import_module("zscgan_ext._native_emulated")
REQUESTED = os.environ.get("ZSCGAN_EXT_IMPL", "auto")
if NATIVE is None and REQUESTED == "auto":
    warnings.warn(
        f"zscgan_ext runs on plain torch, slower: its native core is missing ({MISSING_REASON})",
        RuntimeWarning,
        stacklevel=2,
    )


def require_implementation() -> None:
    """Require a choice that can be had. Every op and every program does.

    Raises:
        InputError: if `ZSCGAN_EXT_IMPL` is unknown, or asks for a native core that is missing.
    """
    if REQUESTED not in CHOICES:
        raise InputError(f"ZSCGAN_EXT_IMPL is {REQUESTED!r}, expected auto, native or reference")
    if NATIVE is None and REQUESTED == "native":
        raise InputError(
            f"ZSCGAN_EXT_IMPL is 'native', but the native core is missing: {MISSING_REASON}"
        )


def uses_native(x: torch.Tensor) -> bool:
    """Return True if the native core has a kernel for this tensor's device and dtype.

    Raises:
        InputError: as `require_implementation`.
    """
    if NATIVE is None or REQUESTED not in ("auto", "native"):
        require_implementation()
        return False
    if x.is_cpu:
        return x.dtype in FLOATING and (EMULATED is None or x.dtype != torch.float64)
    return x.is_cuda and x.dtype != torch.float64 and cuda_missing_reason() is None


def cuda_missing_reason() -> str | None:
    """Return None if the native CUDA kernels can run, or why they cannot."""
    if NATIVE is None:
        return MISSING_REASON
    reason: str | None = NATIVE.cuda_unavailable_reason()
    return reason
