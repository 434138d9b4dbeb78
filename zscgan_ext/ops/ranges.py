"""The op `update_min_max`: running minimum and maximum, and the scale and zero point they give."""

import torch
from torch import Tensor

from zscgan_ext.ops.checks import check_axis, check_dimension, check_observer
from zscgan_ext.ops.layout import ensure_dense
from zscgan_ext.ops.registration import define, kernels


def update_min_max_kernel(
    x: Tensor,
    running_min: Tensor,
    running_max: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    averaging_constant: float,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    axis: int | None,
) -> None:
    """Run the kernel on memory that fits the index space."""
    state = (running_min, running_max, scale, zero_point)
    settings = (averaging_constant, quant_min, quant_max, symmetric, axis)
    with torch.no_grad():
        kernels(x).update_min_max(ensure_dense(x.detach(), axis), *state, *settings)
    # Autograd then refuses a backward pass that needs values from before this call.
    torch.autograd.graph.increment_version(v for v in state if not v.is_inference())


def update_min_max_fake(
    x: Tensor,
    running_min: Tensor,
    running_max: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    averaging_constant: float,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    axis: int | None,
) -> None:
    """Give nothing: the op writes to its arguments alone."""
    return None


def check_update_min_max(
    x: Tensor,
    running_min: Tensor,
    running_max: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    averaging_constant: float,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    axis: int | None,
) -> None:
    """Require what the kernel takes for granted."""
    check_dimension(x, axis)
    check_observer(x, (running_min, running_max, scale, zero_point), quant_min, quant_max, axis)


UPDATE_MIN_MAX = define(
    "update_min_max(Tensor x, Tensor(a!) running_min, Tensor(b!) running_max, Tensor(c!) scale,"
    " Tensor(d!) zero_point, float averaging_constant, int quant_min, int quant_max,"
    " bool symmetric, int? axis) -> ()",
    update_min_max_kernel,
    update_min_max_fake,
    check_update_min_max,
)


def update_min_max(
    x: Tensor,
    running_min: Tensor,
    running_max: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    averaging_constant: float,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    axis: int | None = None,
) -> None:
    """Average the range of `x` into a running range; write the scale and zero point it gives.

    `running += averaging_constant * (observed - running)`; the first observation replaces +inf and
    -inf. Everything happens on the device, without waiting for it. The range always holds zero.
    `symmetric` centres it there. No gradient.

    Args:
        x: any shape.
        running_min: float32 [1], or [C] for `axis`, updated; +inf at first.
        running_max: the same; -inf at first.
        scale: the same, overwritten; at least float32 epsilon.
        zero_point: the same, overwritten with an integer.
        averaging_constant: 0 to 1; 1 takes the range of `x` itself.
        quant_min: smallest integer.
        quant_max: largest integer.
        symmetric: whether the range is the same on both sides of zero.
        axis: dimension of `x` that has one range per index; None for one range in all.

    Raises:
        ValueError: if shapes, dtypes, devices or bounds do not fit.
    """
    axis = check_axis(x, axis)
    check_observer(x, (running_min, running_max, scale, zero_point), quant_min, quant_max, axis)
    UPDATE_MIN_MAX(
        x,
        running_min,
        running_max,
        scale,
        zero_point,
        averaging_constant,
        quant_min,
        quant_max,
        symmetric,
        axis,
    )
