"""Which subjects `bench_kernels` measures, on which tensors, against what."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from benchmarks.kernels.batch_norm_cases import (
    batch_norm_distance,
    batch_norm_loss,
    batch_norm_statistics,
    frozen_batch_norm_with_stats,
    noisy_batch_norm,
)
from benchmarks.kernels.quantization_cases import (
    fake_quantize,
    lsq_fake_quantize,
    lsq_fake_quantize_bias_relu,
    lsq_fake_quantize_foreach,
    lsq_fake_quantize_relu,
    update_min_max,
)
from benchmarks.kernels.subject import Kind, Subject

NCHW, CHANNELS_LAST, WEIGHTS, PER_TENSOR = "NCHW", "channels_last", "weights", "NCHW per tensor"
LAYOUTS: dict[Callable[[Kind], Subject], tuple[str, ...]] = {
    fake_quantize: (NCHW, CHANNELS_LAST, WEIGHTS, PER_TENSOR),
    lsq_fake_quantize: (NCHW, CHANNELS_LAST, WEIGHTS, PER_TENSOR),
    lsq_fake_quantize_relu: (NCHW, CHANNELS_LAST),
    lsq_fake_quantize_bias_relu: (NCHW, CHANNELS_LAST),
    lsq_fake_quantize_foreach: (WEIGHTS,),
    update_min_max: (NCHW, CHANNELS_LAST, WEIGHTS, PER_TENSOR),
    batch_norm_statistics: (NCHW, CHANNELS_LAST),
    frozen_batch_norm_with_stats: (NCHW, CHANNELS_LAST),
    noisy_batch_norm: (NCHW, CHANNELS_LAST),
    batch_norm_loss: (NCHW, CHANNELS_LAST),
    batch_norm_distance: ("vectors",),
}
OPS = tuple(make.__name__ for make in LAYOUTS)
COMPARED_BY_COMPILING = (lsq_fake_quantize, batch_norm_loss)
RESIDENT = (1024, 65536)  # elements
DISTANCE_CHANNELS = 10_000  # of all layers together
MANY_ELEMENTS = 11_200_000  # the convolutions of a ResNet-18
MEBIBYTE = 2**20
GPU_ELEMENTS = (2**10, 2**14, 2**17, 2**20, 2**24, 2**30)
Names = dict[str, tuple[str, ...]]  # of implementations, for each direction
DIRECTIONS = ("forward", "backward", "forward+backward")
EVERY = ("native", "reference", "torch", "compiled")
ALL: Names = dict.fromkeys(DIRECTIONS, EVERY)
UNCOMPILED: Names = dict.fromkeys(DIRECTIONS, EVERY[:3])
WITH_ATEN: Names = dict.fromkeys(DIRECTIONS, ("native", "torch"))
NATIVE: Names = dict.fromkeys(DIRECTIONS, ("native",))
# On a CPU slow implementations are not timed twice: what both passes take tells the backward pass.
SPARING: Names = {**ALL, "backward": ("native",)}
QUICK: Names = {**WITH_ATEN, "backward": ("native",)}


@dataclass(frozen=True)
class Plan:
    """One subject to measure, and by which implementations."""

    make: Callable[[Kind], Subject]
    kind: Kind
    names: Names


def quick_plan(device: torch.device) -> Iterator[Plan]:
    """Yield the main cases of a device."""
    return gpu_quick_plan(device) if device.type == "cuda" else cpu_quick_plan(device)


def cpu_quick_plan(device: torch.device) -> Iterator[Plan]:
    """Yield one layout of every op, and bfloat16 in channels_last by the native core alone."""
    large = 16 * MEBIBYTE
    for make, layouts in LAYOUTS.items():
        names = NATIVE if make is lsq_fake_quantize_foreach else QUICK
        if make in COMPARED_BY_COMPILING:
            names = {**QUICK, "forward+backward": EVERY}
        yield Plan(make, Kind(layouts[0], torch.float32, RESIDENT[0], device), UNCOMPILED)
        yield Plan(make, Kind(layouts[0], torch.float32, large // 4, device), names)
        if CHANNELS_LAST in layouts:
            yield Plan(make, Kind(CHANNELS_LAST, torch.bfloat16, large // 2, device), NATIVE)


def gpu_quick_plan(device: torch.device) -> Iterator[Plan]:
    """Yield every op and layout where memory is the limit, and one layout in every size.

    What takes long to compile comes last.
    """
    slow_last = sorted(LAYOUTS, key=COMPARED_BY_COMPILING.__contains__)
    for make in slow_last:
        for layout, dtype in product(LAYOUTS[make], (torch.float32, torch.bfloat16)):
            names = WITH_ATEN
            if make in COMPARED_BY_COMPILING and layout in (NCHW, CHANNELS_LAST):
                names = {**WITH_ATEN, "forward+backward": EVERY}
            yield Plan(make, Kind(layout, dtype, 256 * MEBIBYTE // dtype.itemsize, device), names)
    for make, layouts in LAYOUTS.items():
        for elements in GPU_ELEMENTS:
            # All buffers of the largest size fit into a GPU of 80 GB in half precision.
            dtype = torch.float32 if elements < GPU_ELEMENTS[-1] else torch.bfloat16
            yield Plan(make, Kind(layouts[0], dtype, elements, device), WITH_ATEN)


def large_sizes(kind: Kind) -> dict[int, Names]:
    """Return what to compare on large tensors, by their size in mebibytes."""
    if kind.dtype == torch.float16:
        return {32: NATIVE}
    if kind.device.type == "cuda":
        return {32: ALL, 256: ALL, 1024: WITH_ATEN}
    common = kind.layout in (NCHW, CHANNELS_LAST) or kind.dtype == torch.float32
    sizes = {32: SPARING if common and kind.layout != PER_TENSOR else QUICK}
    if kind.dtype == torch.float32 and kind.layout != PER_TENSOR:
        sizes[256] = NATIVE
    return sizes


def compiling_pays(make: Callable[[Kind], Subject], kind: Kind) -> bool:
    """Return True if a full run waits for torch.compile: on a GPU always."""
    if kind.device.type == "cuda" or make in COMPARED_BY_COMPILING:
        return True
    is_first = kind.layout == NCHW and kind.dtype == torch.float32
    return is_first and make is not lsq_fake_quantize_foreach


def full_plan(device: torch.device) -> Iterator[Plan]:
    """Yield every op, layout, dtype and size."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for make, layouts in LAYOUTS.items():
        for layout, dtype in product(layouts, dtypes):
            for elements in RESIDENT:
                yield Plan(make, Kind(layout, dtype, elements, device), UNCOMPILED)
            for size, names in large_sizes(Kind(layout, dtype, 0, device)).items():
                kind = Kind(layout, dtype, size * MEBIBYTE // dtype.itemsize, device)
                yield Plan(make, kind, names if compiling_pays(make, kind) else uncompiled(names))


def uncompiled(names: Names) -> Names:
    """Return the names without torch.compile."""
    return {d: tuple(n for n in chosen if n != "compiled") for d, chosen in names.items()}


def sized_plan(device: torch.device, sizes: Sequence[int]) -> Iterator[Plan]:
    """Yield every op and layout in float32 with these numbers of elements."""
    for make, layouts in LAYOUTS.items():
        for layout in layouts:
            for elements in sizes:
                yield Plan(make, Kind(layout, torch.float32, elements, device), UNCOMPILED)


def without_repetition(plans: Iterator[Plan]) -> list[Plan]:
    """Fit ops that are not about one tensor to sizes of their own, once each."""
    kept: dict[tuple[str, Kind], Plan] = {}
    for plan in plans:
        kind, own = plan.kind, None
        if plan.make is batch_norm_distance:
            elements = min(kind.elements, DISTANCE_CHANNELS)
            own = Kind(kind.layout, torch.float32, elements, kind.device)
        if plan.make is lsq_fake_quantize_foreach:
            own = Kind(kind.layout, kind.dtype, min(kind.elements, MANY_ELEMENTS), kind.device)
        kept.setdefault((plan.make.__name__, own or kind), Plan(plan.make, own or kind, plan.names))
    return list(kept.values())
