"""Transposed convolutions whose weight has its output channels first, as quantizers take them."""

import torch.nn.functional as F
from torch import Tensor, nn


class TransposedConvolution(nn.Module):
    """A 2D transposed convolution with its weight in another order.

    Torch keeps [I, O / groups, kH, kW]; here it is [O, I / groups, kH, kW].

    Args:
        layer: whose bias and values are taken.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.stride, self.padding = layer.stride, tuple(int(size) for size in layer.padding)
        self.output_padding, self.dilation = layer.output_padding, layer.dilation
        self.groups, self.kernel_size = layer.groups, layer.kernel_size
        self.weight = nn.Parameter(self.swapped(layer.weight.detach()))
        self.bias = layer.bias

    def swapped(self, weight: Tensor) -> Tensor:
        """Swap input and output channels within each group; done twice, nothing changes."""
        groups, rest = self.groups, weight.shape[2:]
        grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *rest)
        return grouped.transpose(1, 2).flatten(0, 1)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map [N, I, H, W] to [N, O, H', W'] with a weight [O, I / groups, kH, kW]."""
        settings = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        result: Tensor = F.conv_transpose2d(x, self.swapped(weight), bias, *settings)
        return result
