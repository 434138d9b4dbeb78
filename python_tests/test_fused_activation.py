"""`lsq_fake_quantize` with an activation and a bias, against the ops it stands for."""

import math

import pytest
import torch
import torch.nn.functional as F
from tensors import (
    DEVICES,
    HALF_DTYPES,
    LAYOUTS,
    SIZES,
    channels_last,
    dtype_name,
    same_bits,
    same_values,
    sample,
)

from zscgan_ext.ops import lsq_fake_quantize

pytestmark = pytest.mark.usefixtures("implementation")

ACTIVATIONS = {"none": lambda x: x, "relu": torch.relu, "relu6": F.relu6}
CASES = {
    "nchw": (3, 5, 4, 7),
    "columns": (700, 19),
    "one-row": (1, 300),
    "long-rows": (2, 2, 40001),
    "one-channel": (9, 1, 5, 5),
    "many-channels": (3, 257, 2),
}


def quantizer(count=1, device="cpu", dtype=torch.float32):
    """Scales and zero points that ask for gradients; x from about -1 to 3 is inside."""
    scale = torch.linspace(0.2, 0.3, count, dtype=dtype, device=device)
    zero_point = torch.linspace(3.4, 4.4, count, dtype=dtype, device=device)
    return scale.requires_grad_(), zero_point.requires_grad_()


def biases(count, device="cpu", dtype=torch.float32):
    """Biases that ask for gradients."""
    return sample(count, dtype=dtype, device=device, seed=7).requires_grad_()


def per_channel(bias, x):
    """Reshape [C] so that it broadcasts over [N, C, ...]."""
    return bias.view(-1, *[1] * (x.dim() - 2))


def activations(*shape: int, layout="contiguous", dtype=torch.float32, device="cpu"):
    """Values around both ends of ReLU6, in a layout, that ask for gradients."""
    x = 4 * sample(*shape, dtype=dtype, device=device) + 2
    return LAYOUTS[layout](x).requires_grad_()


def results(op, x, parameters, incoming):
    """Result of an op and its gradients for x and all parameters."""
    y = op(x, *parameters)
    return [y, *torch.autograd.grad(y, (x, *parameters), incoming)]


def fused(activation, axis=None):
    return lambda x, scale, zero_point, bias=None: lsq_fake_quantize(
        x, scale, zero_point, 0, 15, axis, 0.5, activation, bias
    )


def composed(activation, axis=None):
    """The same by torch's own activation and the op without one."""

    def op(x, scale, zero_point, bias=None):
        x = x if bias is None else x + per_channel(bias, x)
        x = ACTIVATIONS[activation](x)
        return lsq_fake_quantize(x, scale, zero_point, 0, 15, axis, 0.5)

    return op


def assert_same_but_for_sums(actual, expected, incoming):
    """Require the bits of y and grad_x, and sums within the rounding of their terms."""
    assert same_bits(actual[0], expected[0])
    assert same_values(actual[1], expected[1])
    limit = 1e-6 * 16 * incoming.double().abs().sum().item()
    for gradient, wanted in zip(actual[2:], expected[2:], strict=True):
        assert gradient.dtype == wanted.dtype
        assert gradient.shape == wanted.shape
        assert (gradient - wanted).abs().max() <= limit


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 1], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("case", CASES)
def test_has_the_bits_of_the_composition(device, layout, axis, activation, case):
    shape = CASES[case]
    x = activations(*shape, layout=layout, device=device)
    incoming = LAYOUTS[layout](sample(*shape, device=device, seed=1))
    parameters = quantizer(1 if axis is None else shape[1], device)
    actual, expected = (
        results(make(activation, axis), x, parameters, incoming) for make in (fused, composed)
    )
    if layout == "contiguous":  # torch.relu keeps no other layout for certain
        assert all(same_values(*pair) for pair in zip(actual, expected, strict=True))
    assert_same_but_for_sums(actual, expected, incoming)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 1], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_a_bias_has_the_bits_of_the_composition(device, layout, axis, activation, case):
    shape = CASES[case]
    x = activations(*shape, layout=layout, device=device)
    incoming = LAYOUTS[layout](sample(*shape, device=device, seed=1))
    count = 1 if axis is None else shape[1]
    parameters = (*quantizer(count, device), biases(shape[1], device))
    actual, expected = (
        results(make(activation, axis), x, parameters, incoming) for make in (fused, composed)
    )
    assert_same_but_for_sums(actual, expected, incoming)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_vectors_and_tasks(device, size):
    for shape in ((1, 1, size), (size // 3 + 1, 3), (2, size)):
        x, incoming = activations(*shape, device=device), sample(*shape, device=device, seed=1)
        parameters = (*quantizer(1, device), biases(shape[1], device))
        for count in (2, 3):
            actual, expected = (
                results(make("relu6"), x, parameters[:count], incoming)
                for make in (fused, composed)
            )
            assert_same_but_for_sums(actual, expected, incoming)


def straight_through(activation):
    """The op by autograd, where rounding has the gradient of the identity."""

    def rounded(values):
        return values.round().detach() + (values - values.detach())

    def op(x, scale, zero_point, bias):
        value = ACTIVATIONS[activation](x + per_channel(bias, x))
        scale, zero_point = (0.5 * v + (0.5 * v).detach() for v in (scale, zero_point))
        offset = rounded(zero_point)
        integer = rounded(value / scale) + offset
        clamped = integer.detach().clamp(0, 15)
        return (torch.where(integer == clamped, integer, clamped) - offset) * scale

    return op


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_are_those_of_straight_through_rounding(layout, activation):
    x = activations(4, 6, 5, 7, layout=layout, dtype=torch.float64)
    incoming = sample(4, 6, 5, 7, dtype=torch.float64, seed=1)
    parameters = (*quantizer(dtype=torch.float64), biases(6, dtype=torch.float64))
    actual, expected = (
        results(make(activation), x, parameters, incoming) for make in (fused, straight_through)
    )
    for value, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_where_everything_is_clamped(activation, with_bias):
    # There the rounded function is smooth: a multiple of the scale.
    x = torch.tensor([[[-9.0, 40.0], [9.0, -40.0]]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.125], dtype=torch.float64, requires_grad=True)
    zero_point = torch.tensor([-4.0], dtype=torch.float64)
    bias = torch.tensor([0.5, -0.25], dtype=torch.float64, requires_grad=True)
    inputs = (x, scale, bias) if with_bias else (x, scale)

    def op(x, scale, bias=None):
        return lsq_fake_quantize(x, scale, zero_point, -4, 3, None, 1.0, activation, bias)

    assert torch.autograd.gradcheck(op, inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_half_precision_keeps_the_sum_with_the_bias_in_float32(device, dtype, activation, layout):
    shape = (4, 17, 3, 11)
    x = activations(*shape, layout=layout, dtype=dtype, device=device)
    incoming = LAYOUTS[layout](sample(*shape, dtype=dtype, device=device, seed=1))
    parameters = (*quantizer(1, device), biases(17, device))
    actual = results(fused(activation), x, parameters, incoming)
    wide = x.detach().float().requires_grad_()
    expected = results(composed(activation), wide, parameters, incoming.float())
    assert actual[0].dtype == actual[1].dtype == dtype
    assert_same_but_for_sums(
        actual, [expected[0].to(dtype), expected[1].to(dtype), *expected[2:]], incoming
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_half_precision_has_the_bits_of_the_composition(device, dtype, activation):
    x = activations(4, 17, 3, 11, dtype=dtype, device=device)
    incoming = sample(*x.shape, dtype=dtype, device=device, seed=1)
    parameters = quantizer(1, device)
    actual, expected = (
        results(make(activation), x, parameters, incoming) for make in (fused, composed)
    )
    assert all(same_values(*pair) for pair in zip(actual, expected, strict=True))


# x, relu(x) and whether the gradient passes; relu6(x) and whether it passes
EDGES = [
    (0.0, 0.0, False, 0.0, False),
    (-0.0, 0.0, False, 0.0, False),
    (1e-40, 0.0, True, 0.0, True),
    (-1e-40, 0.0, False, 0.0, False),
    (-3.0, 0.0, False, 0.0, False),
    (5.75, 5.75, True, 5.75, True),
    (6.0, 6.0, True, 6.0, False),
    (6.25, 6.25, True, 6.0, False),
    (31.0, 31.0, True, 6.0, False),
    (32.0, 31.75, False, 6.0, False),
    (math.inf, 31.75, False, 6.0, False),
    (-math.inf, 0.0, False, 0.0, False),
    (math.nan, math.nan, False, math.nan, False),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 13), (13, 1), (1, 13)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_edges_of_the_activations(device, activation, shape, with_bias):
    x = torch.tensor([row[0] for row in EDGES], device=device).view(shape).requires_grad_()
    scale = torch.full((1,), 0.25, device=device)
    bias = torch.zeros(shape[1], device=device) if with_bias else None
    settings = (torch.zeros_like(scale), 0, 127, None, 1.0, activation, bias)
    y = lsq_fake_quantize(x, scale, *settings)
    (grad_x,) = torch.autograd.grad(y.sum(), x)
    first = 1 if activation == "relu" else 3
    expected = torch.tensor([row[first] for row in EDGES], device=device)
    assert same_values(y.detach().flatten(), expected)
    assert grad_x.flatten().tolist() == [float(row[first + 1]) for row in EDGES]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(1, 3, 5), (5, 3)], ids=["rows", "columns"])
def test_special_biases_do_not_spoil_their_neighbours(device, value, shape):
    x, incoming = activations(*shape, device=device), sample(*shape, device=device, seed=1)
    parameters = (*quantizer(1, device), biases(3, device).detach())
    parameters[2][1] = value
    parameters[2].requires_grad_()
    actual, expected = (
        results(make("relu6"), x, parameters, incoming) for make in (fused, composed)
    )
    assert same_bits(actual[0], expected[0])
    assert same_values(actual[1], expected[1])
    assert torch.allclose(actual[4], expected[4], rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (0, 3), (2, 3)], ids=str)
def test_gradients_of_some_inputs_alone(device, wanted):
    complete = [activations(3, 5, device=device), *quantizer(1, device), biases(5, device)]
    gradients = results(fused("relu"), complete[0], complete[1:], torch.ones(3, 5, device=device))
    inputs = [value.detach().clone() for value in complete]
    for i in wanted:
        inputs[i].requires_grad_()
    fused("relu")(*inputs).sum().backward()
    for i, value in enumerate(inputs):
        assert value.grad is None if i not in wanted else same_bits(value.grad, gradients[i + 1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("axis", [None, 1])
def test_empty_gives_zero_gradients(device, shape, axis):
    x = torch.empty(shape, device=device, requires_grad=True)
    parameters = (*quantizer(1 if axis is None else shape[1], device), biases(shape[1], device))
    found = results(fused("relu", axis), x, parameters, torch.empty(shape, device=device))
    for gradient, value in zip(found[1:], (x, *parameters), strict=True):
        assert same_bits(gradient, torch.zeros_like(value))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_nothing_but_x_is_saved(device, with_bias):
    x = activations(2, 3, 8, 8, device=device)
    parameters = (*quantizer(1, device), biases(3, device))[: 3 if with_bias else 2]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fused("relu")(x, *parameters)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in (x, *parameters)}


@pytest.mark.parametrize("device", DEVICES)
def test_memory_format_is_kept_both_ways(device):
    x = channels_last(sample(2, 3, 4, 5, device=device)).requires_grad_()
    y = fused("relu")(x, *quantizer(1, device), biases(3, device))
    (grad,) = torch.autograd.grad(y, x, sample(2, 3, 4, 5, device=device))
    assert y.stride() == x.stride() == grad.stride()
