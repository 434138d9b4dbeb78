"""Many processes that compute as one: who they are, and what they sum, average and agree on.

`torchrun` starts them and tells each its place by environment variables. A run without torchrun is
one process, for which everything here gives back what it is given.
"""

import hashlib
import os
import socket
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from zscgan_ext.errors import InputError, first_line
from zscgan_ext.process_environment import (
    START,
    check_environment,
    is_distributed,
    is_first,
    is_started_by_torchrun,
    number,
    restarts,
)

TIMEOUT = timedelta(minutes=30)  # after which a process that waits for others gives up
MEETING = timedelta(seconds=15)  # that processes wait for others, which torchrun has not started
PATIENCE = timedelta(seconds=2)  # that a process has for the first one to tell an error
Value = TypeVar("Value")


class Control:
    """How processes agree on things, on the CPU whatever they compute on."""

    group: Any = None  # None for torch's default group
    store: Any = None  # None before they met
    is_alone: bool = False  # whether the others did not come


def rank() -> int:
    """Return the place of this process, 0 for the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join(device: torch.device) -> None:
    """Take the device, and meet the other processes that torchrun started, if it did.

    A GPU is made the current one: what names no device would start another.

    Args:
        device: where this one computes; NCCL connects GPUs, gloo CPUs.
    """
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.set_device(device)
    if not is_distributed() or dist.is_initialized():
        return
    check_environment()
    backend = "nccl" if is_gpu else "gloo"
    own_rank, size = number("RANK"), number("WORLD_SIZE")
    store = common_store(TIMEOUT if is_started_by_torchrun() else MEETING)
    store.set_timeout(TIMEOUT)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=TIMEOUT)
    Control.group = dist.new_group(backend="gloo", timeout=TIMEOUT)


def leave() -> None:
    """Part from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()
        Control.group = Control.store = None


def common_store(timeout: timedelta) -> Any:
    """Return the store by which the processes that torchrun started find each other.

    Raises:
        InputError: if its environment variables are not whole, or others do not come.
    """
    if Control.store is None:
        try:
            if not is_started_by_torchrun():
                find_first(timeout)
            store, _, _ = next(rendezvous("env://", timeout=timeout))
        except (OSError, ValueError, RuntimeError) as error:
            Control.is_alone = True
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = getattr(error, "strerror", None) or first_line(error)
            raise InputError(
                f"RANK and WORLD_SIZE say that this is one of {number('WORLD_SIZE')} processes, "
                f"which did not all meet at {place} within {timeout.total_seconds():.0f} seconds "
                f"({reason}); {START}"
            ) from None
        # After a restart the store still has what processes that are gone have left.
        Control.store = dist.PrefixStore(f"start {restarts()}", store)  # type: ignore[attr-defined]
    return Control.store


def find_first(timeout: timedelta) -> None:
    """Wait until the first process can be reached, in silence: torch would log each attempt.

    Raises:
        OSError: if it cannot be, in this time.
    """
    place = os.environ["MASTER_ADDR"], number("MASTER_PORT")
    socket.getaddrinfo(*place)
    end = time.monotonic() + timeout.total_seconds()
    while number("RANK") > 0:
        try:
            socket.create_connection(place, timeout=timeout.total_seconds()).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def prints_the_error() -> bool:
    """Return True if this process, which ends with an error, is the one to print it.

    Of all that end so, because they met the same error or lost the one that did, one prints. The
    first process goes before the others, whose place says nothing then.
    """
    try:
        check_environment()
        if not is_distributed() or Control.is_alone:
            return True
        store = common_store(PATIENCE)
        end = time.monotonic() + (0 if is_first() else PATIENCE.total_seconds())
        while time.monotonic() < end and not store.check(["errors"]):
            time.sleep(0.05)
        return bool(store.add("errors", 1) == 1)
    except (
        RuntimeError,
        InputError,
    ):  # it makes no sense, none can be made, or it is gone with its process
        return True


class SumOverProcesses(torch.autograd.Function):
    """A sum over processes, each of which has a loss of its own that depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Sum tensors of one shape."""
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Sum what the losses of all processes say, since each depends on this one's part."""
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum over processes of a tensor, differentiable."""
    if world_size() == 1:
        return x
    total: Tensor = SumOverProcesses.apply(x)
    return total


def combined_statistics(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    shifts: Sequence[Tensor],
    images: int,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Turn statistics of this process's images into those of all, by one sum for all layers.

    Summed are, for each channel, the count and the first and second moment around a shift.
    Differentiable: with the loss of each process and gradients averaged over processes, gradients
    are those of one process that has all images.

    Args:
        means: [C_i] for each layer.
        variances: [C_i] for each layer, biased.
        shifts: [C_i] for each layer, near the means; without gradient.
        images: of this process, 1 or more; feature maps are as large in all.

    Returns:
        Means and variances of all images, and their number, a scalar tensor.
    """
    if world_size() == 1:
        return list(means), list(variances), means[0].new_full((), images)
    sizes = [len(mean) for mean in means]
    shift = torch.cat(list(shifts)).detach()
    first = torch.cat(list(means)) - shift
    second = torch.cat(list(variances)) + first.square()
    total = all_reduce_sum(
        torch.cat([first * images, second * images, first.new_full((1,), images)])
    )
    first, second = (moment / total[-1] for moment in total[:-1].chunk(2))
    variance = (second - first.square()).clamp(min=0)
    return list((first + shift).split(sizes)), list(variance.split(sizes)), total[-1].detach()


@torch.no_grad()
def all_reduce_mean(x: Tensor) -> Tensor:
    """Return the mean over processes of a tensor, without gradient."""
    if world_size() == 1:
        return x
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def all_reduce_min_max(x: Tensor) -> Tensor:
    """Return minimum and maximum [2] of a tensor over all processes."""
    negative_low, high = -x.amin(), x.amax()
    both = torch.stack([negative_low, high])
    if world_size() > 1:
        dist.all_reduce(both, dist.ReduceOp.MAX)
    return torch.stack([-both[0], both[1]])


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over processes, in one message for each dtype."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        joined = torch.cat([gradient.flatten() for gradient in alike])
        dist.all_reduce(joined)
        joined /= world_size()
        for own, mean in zip(alike, joined.split([g.numel() for g in alike]), strict=True):
            own.copy_(mean.view(own.shape))


def agree(*flags: bool) -> tuple[bool, ...]:
    """Return, for each flag, whether it is set in any process; never waits for a GPU."""
    if world_size() == 1:
        return flags
    numbers = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=Control.group)
    return tuple(bool(number) for number in numbers)


def all_gather(value: Value) -> list[Value]:
    """Return the values of all processes, by their places."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=Control.group)
    return values


def shard_range(length: int) -> range:
    """Return which of `length` things are this process's, a part of about equal length."""
    return range(length * rank() // world_size(), length * (rank() + 1) // world_size())


def seed_for(*names: object) -> int:
    """Return a seed for what is named, and for this process's place among how many."""
    text = " ".join(map(str, [*names, rank(), world_size()]))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")
