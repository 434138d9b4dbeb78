"""What every call of the native core needs: codes of types, addresses, streams, scratch memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops import implementation

core: Any = implementation.NATIVE
DATA_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
ACTIVATION_CODES = {"none": 0, "relu": 1, "relu6": 2}


class OnDevice:
    """The CUDA kernels, with a device that is not the current one made current for each call.

    torch alone knows how to put a device back that nothing has used yet without starting it.
    """

    def __init__(self, kernels: Any, device: int) -> None:
        self.kernels = kernels
        self.device = device

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Return a kernel that runs on the device."""
        kernel = getattr(self.kernels, name)

        def call(*arguments: Any) -> None:
            with torch.cuda.device(self.device):
                kernel(*arguments)

        return call


def cuda_kernels(x: Tensor) -> Any:
    """Return the native module of CUDA kernels for this tensor, None where it takes the CPU's."""
    if not x.is_cpu:
        return core.cuda
    emulated = implementation.EMULATED
    return None if emulated is None else emulated.cuda


def native_module(x: Tensor) -> Any:
    """Return the native module that kernels for this tensor are in, for the structs they take."""
    return implementation.EMULATED if x.is_cpu and implementation.EMULATED else core


def workspace(x: Tensor, size: str, *arguments: Any) -> Tensor | None:
    """Return scratch memory, to be held until the kernel that uses it is queued; None on the CPU.

    The native function named by `size` tells how many bytes. They come from torch's allocator for
    this one call: a CUDA graph under capture takes them from its own memory, and no stream shares
    them.
    """
    kernels = cuda_kernels(x)
    if kernels is None:
        return None
    return torch.empty(getattr(kernels, size)(*arguments), dtype=torch.uint8, device=x.device)


def place(x: Tensor, scratch: Tensor | None = None) -> tuple[Any, int | tuple[int, int, int]]:
    """Return the native module of the tensor's device, and where there its kernels run."""
    kernels = cuda_kernels(x)
    if kernels is None:
        return core.cpu, torch.get_num_threads()
    space = 0 if scratch is None else scratch.data_ptr()
    if x.is_cpu:
        return kernels, (0, 0, space)
    device = x.device.index
    stream = torch.cuda.current_stream(x.device).cuda_stream
    if device != torch.cuda.current_device():
        kernels = OnDevice(kernels, device)
    return kernels, (device, stream, space)


def address(x: Tensor | None) -> int:
    """Return where a tensor lies in memory, 0 for none."""
    return 0 if x is None else x.data_ptr()
