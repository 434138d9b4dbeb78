"""A 3x3 convolution of feature maps whose resolution is doubled, at four ninths of the work."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def spread_kernel(weight: Tensor, dimension: int) -> Tensor:
    """Return three weights along a dimension as the four of a transposed convolution.

    Of two output pixels that lie between the centres of input pixels a, b and c, the first meets
    a once and b twice, the second b twice and c once.
    """
    first, second, third = weight.unbind(dimension)
    return torch.stack([third, second + third, first + second, first], dimension)


class DoublingConv2d(nn.Conv2d):
    """Nearest doubling of the resolution, then a 3x3 convolution with padding 1.

    Every doubled pixel meets two weights of a row at once: the same results come from a transposed
    convolution with stride 2 and 4x4 sums of weights, which takes 16 multiplications in place
    of 36. Weight and bias are those of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, 2H, 2W]."""
        kernel = spread_kernel(spread_kernel(self.weight, 2), 3).transpose(0, 1)  # [in, out, 4, 4]
        # Where either is channels_last, a convolution's result is: x need not be.
        if self.weight.is_contiguous(memory_format=torch.channels_last):
            kernel = kernel.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)
