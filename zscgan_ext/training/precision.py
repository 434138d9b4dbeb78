"""The dtype of forward and backward passes."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from zscgan_ext.processes import average_gradients

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn `auto` into bfloat16 on a GPU that computes in it, and into float32 elsewhere."""
    if name != "auto":
        return name
    computes_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if computes_bfloat16 else "float32"


class Precision:
    """Autocast for forward passes, and loss scaling where float16 needs it.

    Statistics, scales and losses stay float32 whatever the precision.

    Args:
        name: float32, bfloat16 or float16.
        device: where the passes run.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = PRECISIONS[name]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run what it encloses in this precision."""
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            yield

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Take one optimizer step down the gradient of a scalar loss, and free the gradient.

        The gradient is the mean of those of all processes.
        """
        self.scaler.scale(loss).backward()
        average_gradients(p for group in optimizer.param_groups for p in group["params"])
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
