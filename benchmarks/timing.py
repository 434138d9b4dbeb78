"""Timing on equal terms: implementations alternate, buffers rotate, medians count."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.training.execution import is_glibc, keep_freed_memory

# Prepares a call on one of the rotating buffers; the call alone is timed and returns its results.
Implementation = Callable[[int], Callable[[], Sequence[Tensor]]]

# A sample shorter than this many elements repeats the call, so that the clock resolves it.
SAMPLE_ELEMENTS = 2**16
MOST_CALLS = 32
# Inputs larger than this are not cache-resident: as many buffers rotate as fill ROTATED_BYTES.
RESIDENT_BYTES = 2**20
ROTATED_BYTES = 2**28
# Keeps a GPU busy until the timed launches are queued: about 2 ms.
QUEUE_CYCLES = 4_000_000
WARM_UP_SAMPLES = 2


def allocator_in_use() -> str:
    """Make the C library keep freed memory where it can, and return what it does.

    A fresh page costs more than filling it. Otherwise whether a large result lies on fresh pages
    would decide a comparison, and differ between implementations of the same process.
    """
    if not is_glibc():
        return "default"
    keep_freed_memory()
    return "glibc, freed memory is kept"


def buffer_count(size_bytes: int) -> int:
    """Return how many inputs of this size rotate: one where caches are meant to hold it."""
    if size_bytes <= RESIDENT_BYTES:
        return 1
    return max(2, ROTATED_BYTES // size_bytes)


def call_count(elements: int) -> int:
    """Return how often one sample repeats the call."""
    return max(1, min(MOST_CALLS, SAMPLE_ELEMENTS // elements))


def cpu_seconds(calls: Sequence[Callable[[], Any]]) -> tuple[float, list[Any]]:
    """Time calls by the wall clock."""
    start = time.perf_counter()
    results = [call() for call in calls]
    return time.perf_counter() - start, results


def cuda_seconds(calls: Sequence[Callable[[], Any]]) -> tuple[float, list[Any]]:
    """Time calls by events on the stream; a single call is queued before it starts."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if len(calls) == 1:
        torch.cuda._sleep(QUEUE_CYCLES)
    start.record()
    results = [call() for call in calls]
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, results


def median_milliseconds(
    implementations: dict[str, Implementation],
    buffers: int,
    elements: int,
    samples: int,
    device: torch.device,
) -> dict[str, float]:
    """Return the median time of one call of each implementation.

    Every round takes one sample of each, and the next round starts with another one. The latest
    results stay alive, so that they too lie in rotating memory.
    """
    clock = cuda_seconds if device.type == "cuda" else cpu_seconds
    calls = call_count(elements)
    names = list(implementations)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    alive: deque[list[Tensor]] = deque(maxlen=buffers)
    for sample in range(-WARM_UP_SAMPLES, samples):
        first = sample % len(names)
        for place, name in enumerate(names[first:] + names[:first]):
            buffer = (sample * len(names) + place) % buffers
            elapsed, results = clock([implementations[name](buffer) for _ in range(calls)])
            alive.append([tensor.detach() for tensor in results[-1]])
            if sample >= 0:
                seconds[name].append(elapsed / calls)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
