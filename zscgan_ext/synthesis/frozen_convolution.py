"""Convolutions whose weights never learn, and which therefore need not remember their input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InputGradient(torch.autograd.Function):
    """A convolution that saves no input: torch's own keeps it for the gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        """Convolve [N, C, H, W]; settings are stride, padding, dilation and groups."""
        ctx.save_for_backward(weight)
        ctx.settings = settings
        ctx.input_layout = (x.shape, x.stride())
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Give the gradient of x, which depends on its shape and memory format alone."""
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        dtype = grad.dtype  # which autocast convolved in
        if grad.is_cpu and weight.shape[1] == 1 < groups and max(stride) > 1:
            # Where each channel has a kernel of its own and the stride is above 1, oneDNN takes two
            # to ten times as long for this gradient in bfloat16 as in float32.
            grad = grad.float()
        never_read = torch.empty_strided(*ctx.input_layout, dtype=grad.dtype, device=grad.device)
        grad_x, _, _ = torch.ops.aten.convolution_backward(
            grad,
            never_read,
            weight.to(grad.dtype),
            None,
            stride,
            padding,
            dilation,
            False,  # transposed
            [0] * len(padding),
            groups,
            [True, False, False],
        )
        return grad_x.to(dtype), None, None, *[None] * len(ctx.settings)


class FrozenConvolution(nn.Module):
    """A 2D convolution with the frozen weight and bias of another.

    Args:
        layer: see `can_be_frozen`.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.settings = (layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def can_be_frozen(layer: nn.Module | None) -> bool:
        """Return True if a module is a plain convolution without trainable parameters."""
        return (
            type(layer) is nn.Conv2d
            and layer.padding_mode == "zeros"
            and isinstance(layer.padding, tuple)
            and not any(parameter.requires_grad for parameter in layer.parameters())
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H', W']."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            result: Tensor = self.layer(x)
            return result
        result = InputGradient.apply(x, self.layer.weight, self.layer.bias, *self.settings)
        return result
