"""What every call of the native core needs: codes of types, addresses, streams, scratch memory."""

from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops.implementation import NATIVE

core: Any = NATIVE
DATA_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
ACTIVATION_CODES = {"none": 0, "relu": 1, "relu6": 2}


def workspace(x: Tensor, size: int) -> Tensor:
    """Return scratch memory of `size` bytes, to be held until the kernel that uses it is queued.

    It comes from torch's allocator for this one call: a CUDA graph under capture takes it from its
    own memory, and no stream shares it.
    """
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def place(x: Tensor, scratch: Tensor | None = None) -> tuple[Any, tuple[int, ...]]:
    """Return the native module of the tensor's device, and where there its kernels run."""
    if x.is_cpu:
        return core.cpu, (torch.get_num_threads(),)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    return core.cuda, (x.device.index, stream, 0 if scratch is None else scratch.data_ptr())


def address(x: Tensor | None) -> int:
    """Return where a tensor lies in memory, 0 for none."""
    return 0 if x is None else x.data_ptr()
