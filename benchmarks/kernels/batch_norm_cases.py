"""Batch-norm matching, as `bench_kernels` measures it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.baselines import plain_torch
from benchmarks.kernels.subject import Function, Kind, Subject, inputs
from zscgan_ext import ops

EPS = 1e-5
NOISE, SLOPE = 0.5, 0.2  # those of the generator
DISTANCE_LAYERS = 50


def statistics_floor(kind: Kind) -> dict[str, float]:
    """Bytes of mean and variance: x is read, and read and its gradient written."""
    one = float(math.prod(kind.shape) * kind.dtype.itemsize)
    return {"forward": one, "backward": 2 * one, "forward+backward": 3 * one}


def batch_norm_statistics(kind: Kind) -> Subject:
    """Mean and variance of each channel."""
    shift = torch.zeros(kind.shape[1], device=kind.device)
    compiled = torch.compile(plain_torch.batch_norm_statistics, dynamic=False)
    functions: dict[str, Function] = {
        "native": lambda xs: ops.batch_norm_statistics(xs[0], shift),
        "reference": lambda xs: plain_torch.batch_norm_statistics(xs[0]),
        "compiled": lambda xs: compiled(xs[0]),
    }
    return Subject(
        "batch_norm_statistics",
        kind.layout,
        kind.dtype,
        kind.shape,
        functions,
        inputs(kind),
        statistics_floor(kind),
    )


def frozen_batch_norm_with_stats(kind: Kind) -> Subject:
    """Frozen batch norm, ReLU and the statistics of their input."""
    running_mean, running_var, weight, bias = (
        torch.full((kind.shape[1],), v, device=kind.device) for v in (0.1, 0.9, 1.2, 0.3)
    )
    multiplier = weight / (running_var + EPS).sqrt()
    offset = bias - running_mean * multiplier

    def plain(x: Tensor) -> Sequence[Tensor]:
        stored = (weight, bias, running_mean, running_var)
        return plain_torch.frozen_batch_norm_with_stats(x, *stored, EPS)

    compiled = torch.compile(plain, dynamic=False)
    functions: dict[str, Function] = {
        "native": lambda xs: ops.frozen_batch_norm_with_stats(
            xs[0], multiplier, offset, running_mean, "relu"
        ),
        "reference": lambda xs: plain(xs[0]),
        "compiled": lambda xs: compiled(xs[0]),
    }
    # x is read and y written; the gradient of y and x are read and the gradient of x is written.
    one = statistics_floor(kind)["forward"]
    floor = {"forward": 2 * one, "backward": 3 * one, "forward+backward": 5 * one}
    return Subject(
        "frozen_batch_norm_with_stats",
        kind.layout,
        kind.dtype,
        kind.shape,
        functions,
        inputs(kind),
        floor,
    )


def noisy_batch_norm(kind: Kind) -> Subject:
    """Statistics, batch norm, noise and LeakyReLU, as in a block of the generator."""
    weight, bias, mean_hint = (
        torch.full((kind.shape[1],), v, device=kind.device) for v in (1.2, 0.3, 0.1)
    )
    seed = torch.tensor([1], device=kind.device)

    def native(xs: list[Tensor]) -> Sequence[Tensor]:
        statistics = ops.batch_norm_statistics(xs[0].detach(), mean_hint)
        return [ops.noisy_batch_norm(xs[0], weight, bias, *statistics, seed, NOISE, SLOPE, EPS)]

    def plain(x: Tensor) -> Tensor:
        return plain_torch.noisy_batch_norm(x, weight, bias, NOISE, SLOPE, EPS)

    compiled = torch.compile(plain, dynamic=False)
    functions: dict[str, Function] = {
        "native": native,
        "reference": lambda xs: [plain(xs[0])],
        "compiled": lambda xs: [compiled(xs[0])],
    }
    # x is read for the statistics; then it is read, y and a bit are written. The gradient of y, x
    # and the bit are read for sums, then again, and the gradient of x is written.
    elements = math.prod(kind.shape)
    one = float(elements * kind.dtype.itemsize)
    forward, backward = 3 * one + elements / 8, 5 * one + elements / 4
    floor = {"forward": forward, "backward": backward, "forward+backward": forward + backward}
    return Subject(
        "noisy_batch_norm", kind.layout, kind.dtype, kind.shape, functions, inputs(kind), floor
    )


def batch_norm_loss(kind: Kind) -> Subject:
    """Statistics and distance of one layer."""
    running_mean, running_var = (
        torch.full((kind.shape[1],), v, device=kind.device) for v in (0.1, 0.9)
    )

    def native(xs: list[Tensor]) -> Sequence[Tensor]:
        mean, variance = ops.batch_norm_statistics(xs[0], running_mean)
        return [ops.batch_norm_distance([mean], [variance], [running_mean], [running_var], [EPS])]

    def plain(x: Tensor) -> Tensor:
        return plain_torch.batch_norm_loss(x, running_mean, running_var, EPS)

    compiled = torch.compile(plain, dynamic=False)
    functions: dict[str, Function] = {
        "native": native,
        "reference": lambda xs: [plain(xs[0])],
        "compiled": lambda xs: [compiled(xs[0])],
    }
    floor = {"forward+backward": statistics_floor(kind)["forward+backward"]}
    buffers = inputs(kind)
    return Subject(
        "batch_norm_loss", kind.layout, kind.dtype, kind.shape, functions, buffers, floor
    )


def batch_norm_distance(kind: Kind) -> Subject:
    """Distances of fifty layers, with about `kind.elements` channels in all."""
    channels = max(1, kind.elements // DISTANCE_LAYERS)
    columns = [
        [torch.rand(channels, device=kind.device) + 0.5 for _ in range(DISTANCE_LAYERS)]
        for _ in range(4)
    ]
    statistics = [v.requires_grad_() for column in columns[:2] for v in column]
    eps = DISTANCE_LAYERS * [EPS]

    def native(xs: list[Tensor]) -> Sequence[Tensor]:
        means, variances = xs[:DISTANCE_LAYERS], xs[DISTANCE_LAYERS:]
        return [ops.batch_norm_distance(means, variances, columns[2], columns[3], eps)]

    def plain(xs: list[Tensor]) -> Sequence[Tensor]:
        halves = (xs[:DISTANCE_LAYERS], xs[DISTANCE_LAYERS:])
        layers = zip(*halves, *columns[2:], eps, strict=True)
        return [torch.stack([plain_torch.gaussian_kl(*layer) for layer in layers]).mean()]

    compiled = torch.compile(plain, dynamic=False)
    functions: dict[str, Function] = {"native": native, "reference": plain, "compiled": compiled}
    # The forward pass reads four vectors and writes two gradients, the backward pass scales them.
    one = 4.0 * channels * DISTANCE_LAYERS
    floor = {"forward": 6 * one, "backward": 4 * one, "forward+backward": 10 * one}
    shape = (DISTANCE_LAYERS, channels)
    return Subject(
        "batch_norm_distance", "vectors", torch.float32, shape, functions, [statistics], floor
    )
