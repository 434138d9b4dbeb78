"""`DoublingConv2d` against nearest doubling and a 3x3 convolution, borders included."""

import pytest
import torch
from torch.nn import functional

from zscgan_ext.synthesis.doubling_convolution import DoublingConv2d

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def plain(layer, x):
    """What the layer stands for."""
    doubled = functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return functional.conv2d(doubled, layer.weight, layer.bias, padding=1)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 7), (6, 3)], ids=str)
@pytest.mark.parametrize("channels", [(3, 5), (16, 1), (1, 16), (32, 32)], ids=str)
def test_values_and_gradients(memory_format, bias, size, channels):
    torch.manual_seed(0)
    layer = DoublingConv2d(*channels, bias).double().to(memory_format=FORMATS[memory_format])
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    x = x.to(memory_format=FORMATS[memory_format]).requires_grad_()
    y, expected = layer(x), plain(layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    wanted = (x, *layer.parameters())
    given = torch.randn_like(y)
    gradients = torch.autograd.grad(y, wanted, given)
    true = torch.autograd.grad(expected, wanted, given)
    for gradient, right in zip(gradients, true, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_result_is_laid_out_like_the_weight(autocast):
    layer = DoublingConv2d(16, 8, bias=False).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(torch.randn(2, 16, 7, 7))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == (torch.bfloat16 if autocast else torch.float32)


def test_parameters_are_those_of_a_convolution():
    layer = DoublingConv2d(4, 6, bias=True)
    convolution = torch.nn.Conv2d(4, 6, 3, padding=1)
    layer.load_state_dict(convolution.state_dict())
    x = torch.randn(1, 4, 5, 5)
    doubled = functional.interpolate(x, scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(layer(x), convolution(doubled), rtol=1e-4, atol=1e-5)
