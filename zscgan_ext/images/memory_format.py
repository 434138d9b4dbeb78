"""Memory formats that torch leaves ambiguous."""

from typing import TypeVar

import torch
from torch import Tensor, nn

SomeModule = TypeVar("SomeModule", bound=nn.Module)


def to_memory_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return [N, C, H, W] in the strides of a memory format, a copy where they differ.

    For one channel or one pixel `Tensor.contiguous(memory_format=torch.channels_last)` returns the
    tensor as it is, because its strides satisfy both formats, and the layers after it then take
    the contiguous path. The strides set here are only those of the wanted format.
    """
    wanted = torch.empty_like(x, memory_format=memory_format)
    if x.stride() == wanted.stride():
        return x
    return wanted.copy_(x)


def to_channels_last(x: Tensor) -> Tensor:
    """Return [N, C, H, W] in channels_last strides, a copy where they differ."""
    return to_memory_format(x, torch.channels_last)


def lay_out(module: SomeModule, memory_format: torch.memory_format) -> SomeModule:
    """Bring the weights [O, I, H, W] of a module, in place, into a memory format.

    `nn.Module.to` would refuse a module that has a weight of five dimensions as well.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=memory_format)
    return module
