"""Devices, dtypes, layouts and comparisons that the tests of the ops share."""

import pytest
import torch
from torch import Tensor

from zscgan_ext.ops import implementation

NO_GPU = "no GPU"  # why a test is skipped
# Where the CUDA kernels run: a GPU, or the CPU where they are emulated.
CUDA = "cuda" if implementation.EMULATED is None else "cpu"
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param(CUDA, id="cuda", marks=pytest.mark.cuda)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
HALF_DTYPES = [torch.float16, torch.bfloat16]

# (quant_min, quant_max)
BOUNDS = [(0, 255), (-128, 127), (-8, 7), (0, 3)]

# Around vector lengths, and around the elements of one task and of two.
SIZES = [1, 7, 8, 9, 15, 16, 17, 255, 256, 257, 32767, 32768, 32769, 65535, 65536, 65537]


def dtype_name(value):
    """Name a dtype in a test's id; leave other values to pytest."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def sample(*shape: int, dtype=torch.float32, device="cpu", seed=0) -> Tensor:
    """Normal values, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def misaligned(x: Tensor) -> Tensor:
    """Copy x to an address that is no multiple of its vectors' size."""
    buffer = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return buffer[1:].view(x.shape).copy_(x)


def sliced(x: Tensor) -> Tensor:
    """Copy x to every second place of its last dimension."""
    buffer = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    return buffer[..., ::2].copy_(x)


def channels_last(x: Tensor) -> Tensor:
    """Copy x with dimension 1 innermost in memory, where others follow it."""
    if x.dim() < 3:
        return x.clone()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


# Each keeps the shape; `expanded` alone repeats one value along the last dimension.
LAYOUTS = {
    "contiguous": torch.clone,
    "channels_last": channels_last,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": sliced,
    "expanded": lambda x: x[..., :1].expand(x.shape),
    "misaligned": misaligned,
}


def same_values(actual: Tensor, expected: Tensor) -> bool:
    """Return True if shapes, dtypes and values are equal; NaN equals NaN, and -0 equals 0."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Return True if tensors have equal values and the same signs of zeros."""
    return same_values(actual, expected) and same_values(
        actual.nan_to_num(1).signbit(), expected.nan_to_num(1).signbit()
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest error relative to the expected values, which are not zero."""
    expected = expected.double()
    return ((actual.double() - expected) / expected).abs().max().item()
