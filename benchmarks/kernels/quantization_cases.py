"""Fake quantization and observation, as `bench_kernels` measures them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import plain_torch
from benchmarks.kernels.subject import Function, Kind, Subject, inputs
from benchmarks.timing import buffer_count
from zscgan_ext import ops

QUANT_MIN, QUANT_MAX = -8, 7
SCALE, ZERO_POINT = 0.3, 1.0  # about a tenth of normally distributed values is clamped
GRADIENT_SCALE = 0.01
AVERAGING_CONSTANT = 0.01
WITHOUT_ATEN_GRADIENT = (torch.float16,)  # of ATen's own learned op


def quantizer(kind: Kind, channels: int, learned: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, [channels] each."""
    scale = torch.full((channels,), SCALE, device=kind.device, requires_grad=learned)
    zero_point = torch.full((channels,), ZERO_POINT, device=kind.device, requires_grad=learned)
    return scale, zero_point


def channels_of(kind: Kind) -> int:
    """Return how many scales a tensor has."""
    return 1 if kind.axis is None else kind.shape[kind.axis]


def fake_quantize(kind: Kind) -> Subject:
    """Fixed scale and zero point."""
    scale, zero_point = quantizer(kind, channels_of(kind), learned=False)
    integers, axis, bounds = zero_point.int(), kind.axis, (QUANT_MIN, QUANT_MAX)

    def aten(x: Tensor) -> Tensor:
        if axis is None:
            return torch.fake_quantize_per_tensor_affine(x, scale, integers, *bounds)
        return torch.fake_quantize_per_channel_affine(x, scale, integers, axis, *bounds)

    def plain(x: Tensor) -> Tensor:
        return plain_torch.fake_quantize(x, scale, zero_point, *bounds, axis)

    compiled = torch.compile(plain, dynamic=False)
    functions: dict[str, Function] = {
        "native": lambda xs: [ops.fake_quantize(xs[0], scale, zero_point, *bounds, axis)],
        "reference": lambda xs: [plain(xs[0])],
        "torch": lambda xs: [aten(xs[0])],
        "compiled": lambda xs: [compiled(xs[0])],
    }
    numel, size = math.prod(kind.shape), kind.dtype.itemsize
    one_way = (2 * size + 1 / 8) * numel
    floor = {"forward": one_way, "backward": one_way, "forward+backward": 2 * one_way}
    buffers = inputs(kind)
    return Subject("fake_quantize", kind.layout, kind.dtype, kind.shape, functions, buffers, floor)


def learned_floor(numel: int, element_size: int) -> dict[str, float]:
    """Bytes of a fake quantization with learned scales."""
    one = float(numel * element_size)
    return {"forward": 2 * one, "backward": 3 * one, "forward+backward": 5 * one}


def aten_learned(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """Call ATen's own op."""
    if axis is None:
        y: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x, scale, zero_point, QUANT_MIN, QUANT_MAX, GRADIENT_SCALE
        )
        return y
    y = torch._fake_quantize_learnable_per_channel_affine(
        x, scale, zero_point, axis, QUANT_MIN, QUANT_MAX, GRADIENT_SCALE
    )
    return y


def lsq_fake_quantize(kind: Kind) -> Subject:
    """Scale and zero point with gradients."""
    scale, zero_point = quantizer(kind, channels_of(kind), learned=True)
    axis = kind.axis
    settings: tuple[Any, ...] = (QUANT_MIN, QUANT_MAX, axis, GRADIENT_SCALE)

    def plain(x: Tensor) -> Tensor:
        return plain_torch.lsq_fake_quantize(x, scale, zero_point, *settings)

    compiled = torch.compile(plain, dynamic=False)
    functions: dict[str, Function] = {
        "native": lambda xs: [ops.lsq_fake_quantize(xs[0], scale, zero_point, *settings)],
        "reference": lambda xs: [plain(xs[0])],
        "compiled": lambda xs: [compiled(xs[0])],
    }
    if kind.dtype not in WITHOUT_ATEN_GRADIENT:
        functions["torch"] = lambda xs: [aten_learned(xs[0], scale, zero_point, axis)]
    return Subject(
        "lsq_fake_quantize",
        kind.layout,
        kind.dtype,
        kind.shape,
        functions,
        inputs(kind),
        learned_floor(math.prod(kind.shape), kind.dtype.itemsize),
        [scale, zero_point],
    )


def lsq_fake_quantize_relu(kind: Kind, with_bias: bool = False) -> Subject:
    """Scale and zero point with gradients, one in all, behind a ReLU in the same pass."""
    scale, zero_point = quantizer(kind, 1, learned=True)
    settings: tuple[Any, ...] = (QUANT_MIN, QUANT_MAX, None, GRADIENT_SCALE)
    bias = torch.full((kind.shape[1],), 0.1, device=kind.device, requires_grad=True)
    before: tuple[Any, ...] = ("relu", bias if with_bias else None)

    def rectified(x: Tensor) -> Tensor:
        return torch.relu(x + plain_torch.per_channel(bias, x, 1) if with_bias else x)

    def plain(x: Tensor) -> Tensor:
        return plain_torch.lsq_fake_quantize(rectified(x), scale, zero_point, *settings)

    compiled = torch.compile(plain, dynamic=False)
    functions: dict[str, Function] = {
        "native": lambda xs: [
            ops.lsq_fake_quantize(xs[0], scale, zero_point, *(*settings, *before))
        ],
        "reference": lambda xs: [plain(xs[0])],
        "compiled": lambda xs: [compiled(xs[0])],
    }
    if kind.dtype == torch.float32:  # elsewhere ATen refuses it, or what a bias makes of it
        functions["torch"] = lambda xs: [aten_learned(rectified(xs[0]), scale, zero_point, None)]
    return Subject(
        "lsq_fake_quantize_bias_relu" if with_bias else "lsq_fake_quantize_relu",
        kind.layout,
        kind.dtype,
        kind.shape,
        functions,
        inputs(kind),
        learned_floor(math.prod(kind.shape), kind.dtype.itemsize),
        [scale, zero_point, bias] if with_bias else [scale, zero_point],
    )


def lsq_fake_quantize_bias_relu(kind: Kind) -> Subject:
    """The same with a bias added before the ReLU."""
    return lsq_fake_quantize_relu(kind, with_bias=True)


def resnet18_weights() -> list[tuple[int, ...]]:
    """Shapes of the convolutions of ResNet-18 (He et al., 2016)."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    for before, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        shapes += [(width, before, 3, 3)] + 3 * [(width, width, 3, 3)]
        if before != width:
            shapes.append((width, before, 1, 1))
    return shapes


def lsq_fake_quantize_foreach(kind: Kind) -> Subject:
    """All weights of a network at once, scaled down to about `kind.elements`."""
    full = sum(math.prod(shape) for shape in resnet18_weights())
    share = min(1.0, kind.elements / full)
    shapes = [(max(1, round(s[0] * share)), *s[1:]) for s in resnet18_weights()]
    numel = sum(math.prod(shape) for shape in shapes)
    count = buffer_count(numel * kind.dtype.itemsize)
    first = [torch.randn(s, device=kind.device).to(kind.dtype) for s in shapes]
    buffers = [[x.clone().requires_grad_() for x in first] for _ in range(count)]
    scales, zero_points = zip(*(quantizer(kind, s[0], True) for s in shapes), strict=True)
    length = len(shapes)
    settings = (length * [QUANT_MIN], length * [QUANT_MAX], length * [GRADIENT_SCALE])

    def plain(xs: list[Tensor]) -> list[Tensor]:
        one: tuple[Any, ...] = (QUANT_MIN, QUANT_MAX, 0, GRADIENT_SCALE)
        columns = zip(xs, scales, zero_points, strict=True)
        return [plain_torch.lsq_fake_quantize(*row, *one) for row in columns]

    functions: dict[str, Function] = {
        "native": lambda xs: ops.lsq_fake_quantize_foreach(xs, scales, zero_points, *settings),
        "reference": plain,
        "compiled": torch.compile(plain, dynamic=False),
    }
    if kind.dtype not in WITHOUT_ATEN_GRADIENT:
        functions["torch"] = lambda xs: [
            aten_learned(*row, 0) for row in zip(xs, scales, zero_points, strict=True)
        ]
    return Subject(
        "lsq_fake_quantize_foreach",
        kind.layout,
        kind.dtype,
        (length, numel),
        functions,
        buffers,
        learned_floor(numel, kind.dtype.itemsize),
        [*scales, *zero_points],
    )


def update_min_max(kind: Kind) -> Subject:
    """Running range of each channel, and its scale and zero point."""
    axis, channels = kind.axis, channels_of(kind)
    values = (-1.0, 1.0, SCALE, ZERO_POINT)
    state: tuple[Any, ...] = tuple(torch.full((channels,), v, device=kind.device) for v in values)
    settings: tuple[Any, ...] = (AVERAGING_CONSTANT, QUANT_MIN, QUANT_MAX)

    native_arguments: tuple[Any, ...] = (*state, *settings, False, axis)

    def native(xs: list[Tensor]) -> Sequence[Tensor]:
        ops.update_min_max(xs[0], *native_arguments)
        return []

    def run(observer: Callable[..., None], xs: list[Tensor]) -> Sequence[Tensor]:
        observer(xs[0], state, *settings, axis)
        return []

    functions: dict[str, Function] = {"native": native}
    if axis is None:
        functions["torch"] = lambda xs: torch.aminmax(xs[0])
    else:
        compiled = torch.compile(plain_torch.update_min_max, dynamic=False)
        functions["reference"] = lambda xs: run(plain_torch.update_min_max, xs)
        functions["compiled"] = lambda xs: run(compiled, xs)
    if kind.layout == "weights":
        functions["torch"] = lambda xs: torch.aminmax(xs[0].flatten(1), dim=1)
    floor = {"forward": float(math.prod(kind.shape) * kind.dtype.itemsize)}
    buffers = [[x.detach() for x in buffer] for buffer in inputs(kind)]
    return Subject("update_min_max", kind.layout, kind.dtype, kind.shape, functions, buffers, floor)
