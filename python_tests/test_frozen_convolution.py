"""Frozen convolutions: torch's own results, without torch's memory of the input."""

import pytest
import torch
from tensors import channels_last, sample
from torch import nn

from zscgan_ext.synthesis.frozen_convolution import FrozenConvolution

LAYERS = {
    "plain": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "without bias": lambda: nn.Conv2d(6, 4, 1, bias=False),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
    "dilated": lambda: nn.Conv2d(6, 4, (3, 2), dilation=2, padding=(2, 0), stride=(1, 2)),
}


def frozen(name):
    torch.manual_seed(0)
    return LAYERS[name]().requires_grad_(False)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", [torch.clone, channels_last], ids=["NCHW", "channels_last"])
def test_values_and_gradients_are_those_of_torch(name, layout):
    layer = frozen(name)
    outcomes = []
    for module in (layer, FrozenConvolution(layer)):
        x = layout(sample(2, 6, 9, 8)).requires_grad_()
        y = module(x)
        outcomes.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for ours, expected in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        assert ours.stride() == expected.stride()


def test_gradcheck():
    layer = FrozenConvolution(frozen("dilated").double())
    assert torch.autograd.gradcheck(layer, sample(1, 6, 5, 5).double().requires_grad_())


def test_under_autocast():
    layer = frozen("plain")
    outcomes = []
    for module in (layer, FrozenConvolution(layer)):
        x = sample(2, 6, 9, 8).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        outcomes.append((y, *torch.autograd.grad(y.float().sum(), x)))
    for ours, expected in zip(*reversed(outcomes), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2)


def test_the_input_is_not_kept():
    saved = []
    layer = FrozenConvolution(frozen("plain"))
    x = sample(2, 6, 9, 8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda v: saved.append(v.shape) or v, lambda v: v
    ):
        layer(x)
    assert saved == [layer.layer.weight.shape]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 3, 1).requires_grad_(False), True),
        (nn.Conv2d(3, 3, 1), False),
        (nn.Conv2d(3, 3, 1, padding_mode="circular").requires_grad_(False), False),
        (nn.Conv2d(3, 3, 1, padding="same").requires_grad_(False), False),
        (nn.Conv1d(3, 3, 1).requires_grad_(False), False),
        (None, False),
    ],
)
def test_which_layers_can_be_frozen(layer, expected):
    assert FrozenConvolution.can_be_frozen(layer) is expected


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_gradients_in_bfloat16(stride):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, stride, padding=1, groups=16).requires_grad_(False)
    x = sample(2, 16, 9, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = FrozenConvolution(layer)(x)
    assert y.dtype == torch.bfloat16
    given = sample(*y.shape, seed=1)
    (gradient,) = torch.autograd.grad(y, x, given.bfloat16())
    (expected,) = torch.autograd.grad(layer(x), x, given)
    torch.testing.assert_close(gradient, expected, rtol=2e-2, atol=2e-2)
