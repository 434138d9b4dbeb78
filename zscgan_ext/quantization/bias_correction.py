"""Biases that take back what rounding weights adds to a layer's mean output.

`E[y] = E[W x]` becomes `E[W x] + (Q(W) - W) E[x]`, which is subtracted from the bias (DFQ, Nagel et
al., ICCV 2019, equations 16 and 17). DFQ has `E[x]` from a normal distribution that is clipped by
ReLU; here it is the mean of samples, which are propagated through every kind of operation.
"""

import torch
from torch import Tensor

from zscgan_ext.quantization.quantizers import QuantizedLayer


@torch.no_grad()
def correct_bias(layer: QuantizedLayer, before: Tensor, after: Tensor) -> None:
    """Subtract from a bias what the mean of a layer's output has changed by.

    A layer without a bias stays as it is.

    Args:
        layer: changed in place.
        before: output of float weights, [N, O, ...], or [..., O] of a linear layer.
        after: output of rounded weights for the same input.
    """
    bias = layer.layer.bias
    if bias is None:
        return
    axis = before.dim() - 1 if isinstance(layer.layer, torch.nn.Linear) else 1
    dims = [dim for dim in range(before.dim()) if dim != axis]
    bias -= (after - before).mean(dims)
