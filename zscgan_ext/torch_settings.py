"""What is global in torch: settings that callers may have changed, and random numbers."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


class OneAtATime:
    """A lock for threads. A forked process has its own: the thread that held it is not there."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """Take a lock that nobody holds."""
        self.lock = threading.RLock()


ONE_AT_A_TIME = OneAtATime()


@contextmanager
def alone() -> Iterator[None]:
    """Let threads wait for each other: torch's default random numbers are those of all of them."""
    with ONE_AT_A_TIME.lock:
        yield


@contextmanager
def usual_torch() -> Iterator[None]:
    """Give what runs inside the settings that torch starts with, whatever those of the user are.

    Gradients are needed, tensors without a dtype are meant to be float32 on the CPU, and autocast
    is chosen by `precision` alone.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        yield
