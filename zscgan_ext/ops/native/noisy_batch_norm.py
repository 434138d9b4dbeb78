"""The kernels of noisy batch norm of the native core."""

import torch
from torch import Tensor

from zscgan_ext.ops.layout import shape3_of
from zscgan_ext.ops.native.calls import DATA_TYPES, place, workspace


def noisy_batch_norm(
    x: Tensor, multiplier: Tensor, offset: Tensor, seed: Tensor, noise: float, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """Normalize, add noise and apply a LeakyReLU; with the mask of what was positive before it."""
    y = torch.empty_like(x)
    positive = torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)
    module, where = place(x)
    module.noisy_batch_norm(
        DATA_TYPES[x.dtype],
        shape3_of(x, 1),
        x.data_ptr(),
        multiplier.data_ptr(),
        offset.data_ptr(),
        seed.data_ptr(),
        noise,
        negative_slope,
        y.data_ptr(),
        positive.data_ptr(),
        where,
    )
    return y, positive


def noisy_batch_norm_sums(
    grad: Tensor, x: Tensor, positive: Tensor, mean: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """Sum the gradient before the LeakyReLU, and its product with x - mean, over each channel."""
    sums, product_sums = torch.empty_like(mean), torch.empty_like(mean)
    shape = shape3_of(x, 1)
    scratch = workspace(x, "reduction_workspace", shape)
    module, where = place(x, scratch)
    module.noisy_batch_norm_sums(
        DATA_TYPES[x.dtype],
        shape,
        grad.data_ptr(),
        x.data_ptr(),
        positive.data_ptr(),
        mean.data_ptr(),
        negative_slope,
        sums.data_ptr(),
        product_sums.data_ptr(),
        where,
    )
    return sums, product_sums


def noisy_batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    positive: Tensor,
    multiplier: Tensor,
    constant: Tensor,
    slope: Tensor,
    negative_slope: float,
) -> Tensor:
    """Give the gradient of x: that gradient times multiplier, plus constant + slope * x."""
    grad_x = torch.empty_like(x)
    module, where = place(x)
    module.noisy_batch_norm_backward(
        DATA_TYPES[x.dtype],
        shape3_of(x, 1),
        grad.data_ptr(),
        x.data_ptr(),
        positive.data_ptr(),
        multiplier.data_ptr(),
        constant.data_ptr(),
        slope.data_ptr(),
        negative_slope,
        grad_x.data_ptr(),
        where,
    )
    return grad_x
