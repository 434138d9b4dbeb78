"""Everything that the kernels compute for a tensor, by name: what tests compare bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from tensors import LAYOUTS, sample
from torch import Tensor

from zscgan_ext.ops import native
from zscgan_ext.ops.batch_norm_matching import DISTANCES
from zscgan_ext.ops.layout import compute_dtype

BOUNDS = (-8, 7)
GRADIENT_SCALE = 0.5
EPS = 1e-5


@dataclass(frozen=True)
class Inputs:
    """A tensor, its incoming gradient, and the parameters of its channels."""

    x: Tensor
    grad: Tensor
    axis: int | None
    scale: Tensor  # [channels of axis]
    zero_point: Tensor  # [channels of axis]
    vectors: list[Tensor]  # four of [x.shape[1]], near the mean and variance of x

    def tensors(self) -> list[Tensor]:
        """Return all of them."""
        return [self.x, self.grad, self.scale, self.zero_point, *self.vectors]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return the inputs with every tensor changed."""
        x, grad, scale, zero_point, *vectors = map(change, self.tensors())
        return Inputs(x, grad, self.axis, scale, zero_point, vectors)


def make_inputs(shape, axis, layout="contiguous", dtype=torch.float32, device="cpu", seed=0):
    """Draw inputs: the same values on every device and in every layout."""
    # Far enough from zero that sums do not cancel, and relative errors mean something.
    x = sample(*shape, seed=seed) + 1
    grad = sample(*shape, seed=seed + 1).abs() + 0.1
    count = 1 if axis is None else shape[axis]
    wide = compute_dtype(x.to(dtype))
    return Inputs(
        LAYOUTS[layout](x.to(device, dtype)),
        LAYOUTS[layout](grad.to(device, dtype)),
        axis,
        torch.linspace(0.05, 0.1, count, dtype=wide).to(device),
        torch.linspace(-3.6, 3.3, count, dtype=wide).to(device),
        [
            1 + sample(shape[1], dtype=wide, device=device, seed=seed + k).abs() / 5
            for k in range(4 if len(shape) > 1 else 0)
        ],
    )


def quantization_results(inputs, module=native):
    """Run every quantization kernel of `native` or `reference`."""
    x, grad, axis, scale, zero_point = (
        *(inputs.x, inputs.grad, inputs.axis, inputs.scale, inputs.zero_point),
    )
    low, high = BOUNDS
    y, mask = module.fake_quantize(x, scale, zero_point.round(), low, high, axis, True)
    lists = ([x], [scale], [zero_point], [low], [high])
    plain = (["none"], [None])
    (learned,) = module.lsq_fake_quantize(*lists, [axis], *plain)
    *gradients, _ = module.lsq_fake_quantize_backward(
        [grad], *lists, [axis], [GRADIENT_SCALE], *plain
    )
    state = [torch.full_like(scale, v, dtype=torch.float32) for v in (torch.inf, -torch.inf, 0, 0)]
    module.update_min_max(x, *state, 0.1, low, high, False, axis)
    names = ("grad_x", "grad_scale", "grad_zero_point")
    return {
        "y": y,
        "mask": mask,
        "masked": module.fake_quantize_backward(grad, mask),
        "learned": learned,
        "state": torch.stack(state),
        **{name: values for name, (values,) in zip(names, gradients, strict=True)},
    }


def fused_results(inputs, module=native):
    """Run learned quantization behind every activation, with and without a bias."""
    biases = [None, -inputs.vectors[0]] if inputs.x.dim() > 1 else [None]
    found = {}
    for activation, bias in product(("none", "relu", "relu6"), biases):
        axis = inputs.axis if bias is None else None
        count = len(inputs.scale) if axis is not None else 1
        quantizer = ([inputs.scale[:count]], [inputs.zero_point[:count]], *([v] for v in BOUNDS))
        stage = ([activation], [bias])
        (y,) = module.lsq_fake_quantize([inputs.x], *quantizer, [axis], *stage)
        gradients = module.lsq_fake_quantize_backward(
            [inputs.grad], [inputs.x], *quantizer, [axis], [GRADIENT_SCALE], *stage
        )
        names = ("y", "grad_x", "grad_scale", "grad_zero_point", "grad_bias")
        kind = activation if bias is None else f"{activation}_with_bias"
        found |= {
            f"fused_{name}_{kind}": values
            for name, (values,) in zip(names, ([y], *gradients), strict=True)
            if values is not None
        }
    return found


def statistics_results(inputs, module=native):
    """Run every batch-norm kernel of `native` or `reference`."""
    mean, variance = module.batch_norm_statistics(inputs.x, inputs.vectors[0])
    found = {
        "mean": mean,
        "variance": variance,
        "statistics_grad_x": module.batch_norm_statistics_backward(inputs.x, *inputs.vectors[:3]),
    }
    for name in DISTANCES:
        columns = [[values, values[:1]] for values in inputs.vectors]
        values = module.batch_norm_distance(*columns, [EPS, 2 * EPS], name)
        found |= {f"{name}_{i}": value for i, value in enumerate(values)}
    return found


def frozen_batch_norm_results(inputs, module=native):
    """Run every kernel of frozen batch norm, with and without a residual and statistics."""
    x, grad, (multiplier, offset, shift, slope) = inputs.x, inputs.grad, inputs.vectors
    frozen, found = (x, multiplier, -offset), {}
    for activation, residual in product(("none", "relu", "relu6"), (None, grad)):
        with_residual = residual is not None
        y = module.frozen_batch_norm(*frozen, residual, activation)
        matched_y, _, _ = module.frozen_batch_norm_with_stats(*frozen, shift, residual, activation)
        masked_by_y = with_residual and activation != "none"
        settings = (activation, masked_by_y)
        saved = (grad, x, y if masked_by_y else None, multiplier, -offset)
        plain = module.frozen_batch_norm_backward(*saved, None, None, None, *settings)
        both = module.frozen_batch_norm_backward(*saved, shift, offset, slope, *settings)
        kind = f"{activation}_with_residual" if with_residual else activation
        columns = {"y": y, "matched_y": matched_y, "grad_x": plain[0], "grad_residual": plain[1]}
        found |= {f"frozen_{kind}_{name}": values for name, values in columns.items()}
        found[f"frozen_grad_x_{kind}"] = both[0]
    return found


def many_results(inputs, module=native):
    """Run the multi-tensor kernels on slices of x of very different sizes."""
    flat = (inputs.x.reshape(-1), inputs.grad.reshape(-1))
    shapes = [(3, 5), (40, 50), (7, 1), (1, inputs.x.numel()), (64, 9)]
    xs, grads = ([v[: r * c].view(r, c) for r, c in shapes] for v in flat)
    scales = [inputs.scale[:1].expand(len(x)).contiguous() for x in xs]
    zero_points = [inputs.zero_point[:1].expand(len(x)).contiguous() for x in xs]
    axes = [0, 0, None, 0, 0]
    scales[2], zero_points[2] = inputs.scale[:1], inputs.zero_point[:1]
    settings = (xs, scales, zero_points, len(xs) * [BOUNDS[0]], len(xs) * [BOUNDS[1]])
    plain = (len(xs) * ["none"], len(xs) * [None])
    ys = module.lsq_fake_quantize(*settings, axes, *plain)
    factors = len(xs) * [1.0]
    columns = module.lsq_fake_quantize_backward(grads, *settings, axes, factors, *plain)[:3]
    names = ("many_y", "many_grad_x", "many_grad_scale", "many_grad_zero_point")
    return {
        f"{name}_{i}": values
        for name, column in zip(names, (ys, *columns), strict=True)
        for i, values in enumerate(column)
    }


def all_results(inputs, module=native):
    """Run every kernel of `native` or `reference`."""
    return {
        **quantization_results(inputs, module),
        **fused_results(inputs, module),
        **many_results(inputs, module),
        **(statistics_results(inputs, module) if inputs.x.dim() > 1 else {}),
        **(frozen_batch_norm_results(inputs, module) if inputs.x.dim() > 1 else {}),
    }
