"""The kernels of noisy batch norm of the native core."""

import torch
from torch import Tensor

from zscgan_ext.ops.layout import extent_of
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
        extent_of(x, 1),
        noise,
        negative_slope,
        x.data_ptr(),
        multiplier.data_ptr(),
        offset.data_ptr(),
        seed.data_ptr(),
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
    extent = extent_of(x, 1)
    scratch = workspace(x, "reduction_workspace", extent)
    module, where = place(x, scratch)
    module.noisy_batch_norm_sums(
        DATA_TYPES[x.dtype],
        extent,
        negative_slope,
        grad.data_ptr(),
        x.data_ptr(),
        positive.data_ptr(),
        mean.data_ptr(),
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
        extent_of(x, 1),
        negative_slope,
        grad.data_ptr(),
        x.data_ptr(),
        positive.data_ptr(),
        multiplier.data_ptr(),
        constant.data_ptr(),
        slope.data_ptr(),
        grad_x.data_ptr(),
        where,
    )
    return grad_x
