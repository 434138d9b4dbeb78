"""`lsq_fake_quantize` against torch's learnable ops and against sums in float64."""

import math

import pytest
import torch
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

from zscgan_ext.ops import fake_quantize, lsq_fake_quantize, lsq_fake_quantize_foreach

pytestmark = pytest.mark.usefixtures("implementation")

CASES = {
    "per-tensor": ((5, 6, 7), None),
    "nchw": ((3, 5, 4, 7), 1),
    "weights": ((6, 3, 3, 3), 0),
    "last-axis": ((4, 3, 10), -1),
    "columns": ((700, 19), 1),
    "one-row": ((1, 300), 1),
    "vector": ((300,), 0),
    "long-rows": ((2, 2, 40001), 1),
}


def learned_quantizer(count, device="cpu", dtype=torch.float32):
    """Scales and whole zero points that ask for gradients."""
    scale = torch.linspace(0.03, 0.3, count, dtype=dtype, device=device)
    zero_point = torch.linspace(2, 11, count, dtype=dtype, device=device).round()
    return scale.requires_grad_(), zero_point.requires_grad_()


def torch_result(x, scale, zero_point, low, high, axis, gradient_scale):
    """What torch's own op gives for float32."""
    if axis is None:
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, scale, zero_point, low, high, gradient_scale
        )
    return torch._fake_quantize_learnable_per_channel_affine(
        x, scale, zero_point, axis % x.dim(), low, high, gradient_scale
    )


def summed(terms, axis):
    """Sum over all dimensions but `axis`."""
    if axis is None:
        return terms.sum().reshape(1)
    return terms.movedim(axis, 0).reshape(terms.shape[axis], -1).sum(1)


def true_gradients(incoming, x, scale, zero_point, low, high, axis):
    """Gradients of scale and zero point in float64, and the errors that float32 may make."""
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    narrow, offset = (v.detach().reshape(shape) for v in (scale, zero_point))
    offset = offset.round().clamp(low, high)
    wide = x.detach().to(scale.dtype)
    integer = (wide * (1 / narrow)).round() + offset
    inside = (integer >= low) & (integer <= high)
    steps = narrow.double()
    bound, exact = (integer.clamp(low, high) - offset).double(), wide.double() / steps
    by_scale = torch.where(inside, bound - exact, bound) * incoming.double()
    by_zero_point = torch.where(inside, 0, -steps * incoming.double())
    # x / scale is off by two roundings before the integer is taken from it.
    rounding = 2**-23 * (inside * exact * incoming.double()).abs()
    errors = (1e-5 * by_scale.abs() + rounding, 1e-5 * by_zero_point.abs())
    totals = (summed(terms, axis) for terms in (by_scale, by_zero_point))
    return list(zip(totals, (summed(error, axis) for error in errors), strict=True))


def assert_close_sums(gradients, truth, factor=1.0):
    for gradient, (total, error) in zip(gradients, truth, strict=True):
        assert ((gradient.double() - factor * total).abs() <= factor * error).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_has_the_bits_of_torch(device, case):
    shape, axis = CASES[case]
    count = 1 if axis is None else shape[axis]
    results = []
    for op in (lsq_fake_quantize, torch_result):
        x = sample(*shape, device=device).requires_grad_()
        y = op(x, *learned_quantizer(count, device), 0, 15, axis, 0.5)
        (grad_x,) = torch.autograd.grad(y, x, sample(*shape, device=device, seed=1))
        results.append((y, grad_x))
    (y, grad_x), (expected, expected_grad) = results
    assert same_bits(y, expected)
    assert same_values(grad_x, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_in_every_layout(device, layout, case):
    shape, axis = CASES[case]
    x = LAYOUTS[layout](sample(*shape, device=device)).requires_grad_()
    scale, zero_point = learned_quantizer(1 if axis is None else shape[axis], device)
    incoming = LAYOUTS[layout](sample(*shape, device=device, seed=1))
    y = lsq_fake_quantize(x, scale, zero_point, 0, 15, axis, 0.25)
    grad_x, *gradients = torch.autograd.grad(y, (x, scale, zero_point), incoming)
    fixed = fake_quantize(x, scale.detach(), zero_point.detach(), 0, 15, axis)
    assert same_bits(y, fixed)
    assert same_values(grad_x, torch.autograd.grad(fixed, x, incoming)[0])
    truth = true_gradients(incoming, x, scale, zero_point, 0, 15, axis)
    assert_close_sums(gradients, truth, factor=0.25)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_vectors_and_tasks(device, size):
    for shape, axis in (((size,), None), ((size // 3 + 1, 3), 1), ((2, size), 0)):
        x = sample(*shape, device=device).requires_grad_()
        incoming = sample(*shape, device=device, seed=1)
        inputs = (x, *learned_quantizer(1 if axis is None else shape[axis], device))
        y = lsq_fake_quantize(*inputs, 0, 15, axis)
        grad_x, *gradients = torch.autograd.grad(y, inputs, incoming)
        assert_close_sums(gradients, true_gradients(incoming, *inputs, 0, 15, axis))
        assert ((grad_x == incoming) | (grad_x == 0)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [*HALF_DTYPES, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_other_dtypes(device, dtype, axis):
    x = channels_last(sample(4, 17, 3, 11, dtype=dtype, device=device)).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    count = 1 if axis is None else x.shape[axis]
    scale, zero_point = learned_quantizer(count, device, wide)
    incoming = sample(*x.shape, dtype=dtype, device=device, seed=1)
    y = lsq_fake_quantize(x, scale, zero_point, 0, 15, axis)
    _, *gradients = torch.autograd.grad(y, (x, scale, zero_point), incoming)
    single = lsq_fake_quantize(x.detach().to(wide), scale, zero_point, 0, 15, axis)
    assert same_bits(y, single.to(dtype))
    assert_close_sums(gradients, true_gradients(incoming, x, scale, zero_point, 0, 15, axis))


@pytest.mark.parametrize("device", DEVICES)
def test_zero_point_is_rounded_to_even_and_clamped(device):
    x = torch.tensor([-9.0, 0.0, 1.0, 9.0], device=device)
    for zero_point, used in ((2.5, 2), (-2.5, -2), (3.4, 3), (99.0, 7), (-99.0, -8)):
        offset = torch.tensor([zero_point], device=device)
        y = lsq_fake_quantize(x, torch.ones(1, device=device), offset, -8, 7)
        assert y.tolist() == [max(-8, min(7, v + used)) - used for v in x.tolist()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [None, 1], ids=["per-tensor", "columns"])
def test_special_values_do_not_spoil_their_neighbours(device, axis):
    x = torch.tensor([[math.inf], [-math.inf], [3e38], [1e-40], [2.25]], device=device)
    x.requires_grad_()
    scale = torch.full((1,), 0.5, device=device, requires_grad=True)
    zero_point = torch.full((1,), 2.0, device=device, requires_grad=True)
    y = lsq_fake_quantize(x, scale, zero_point, 0, 7, axis)
    assert y.flatten().tolist() == [2.5, -1.0, 2.5, 0.0, 2.0]
    gradients = torch.autograd.grad(y.sum(), (x, scale, zero_point))
    assert gradients[0].flatten().tolist() == [0, 0, 0, 1, 1]
    assert gradients[1].tolist() == [5 - 2 + 5 + 0 - 0.5]
    assert gradients[2].tolist() == [3 * -0.5]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_gradients_of_some_inputs_alone(device, wanted):
    inputs = [sample(3, 5, device=device), *(v.detach() for v in learned_quantizer(5, device))]
    complete = [v.clone().requires_grad_() for v in inputs]
    y = lsq_fake_quantize(*complete, 0, 7, 1)
    gradients = torch.autograd.grad(y.sum(), complete)
    for i in wanted:
        inputs[i].requires_grad_()
    lsq_fake_quantize(*inputs, 0, 7, 1).sum().backward()
    for i, value in enumerate(inputs):
        assert value.grad is None if i not in wanted else same_bits(value.grad, gradients[i])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0,), (0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("axis", [None, -1, 0])
def test_empty_gives_zero_gradients(device, shape, axis):
    x = torch.empty(shape, device=device, requires_grad=True)
    inputs = (x, *learned_quantizer(1 if axis is None else shape[axis], device))
    y = lsq_fake_quantize(*inputs, 0, 3, axis)
    for gradient, value in zip(torch.autograd.grad(y.sum(), inputs), inputs, strict=True):
        assert same_bits(gradient, torch.zeros_like(value))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("axis", [None, 1])
def test_memory_format_is_kept_both_ways(device, layout, axis):
    x = LAYOUTS[layout](sample(2, 3, 4, 5, device=device)).requires_grad_()
    y = lsq_fake_quantize(x, *learned_quantizer(3 if axis else 1, device), 0, 7, axis)
    (grad,) = torch.autograd.grad(y, x, sample(2, 3, 4, 5, device=device))
    assert y.stride() == x.stride() == grad.stride()


def assert_each_as_alone(xs, scales, zero_points, lows, highs, factors):
    """Quantize all in one call, and compare values and gradients with those of a call for each."""
    for x in xs:
        x.requires_grad_()
    columns = (xs, scales, zero_points, lows, highs, factors)
    ys = lsq_fake_quantize_foreach(*columns)
    gradients = torch.autograd.grad([y.sum() for y in ys], [*xs, *scales, *zero_points])
    for i, (x, scale, zero_point, low, high, factor) in enumerate(zip(*columns, strict=True)):
        axis = None if len(scale) == 1 else 0
        y = lsq_fake_quantize(x, scale, zero_point, low, high, axis, factor)
        assert same_bits(ys[i], y)
        alone = torch.autograd.grad(y.sum(), (x, scale, zero_point))
        for actual, expected in zip(gradients[i :: len(xs)], alone, strict=True):
            assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_many_is_each_alone(device):
    shapes = [(4, 3, 3, 3), (7, 50), (1, 9), (0, 5), (2, 200000), (33, 1), (5, 1000)]
    xs = [sample(*shape, device=device, seed=i) for i, shape in enumerate(shapes)]
    xs[0], xs[1] = channels_last(xs[0]), LAYOUTS["sliced"](xs[1])
    counts = [shape[0] if i % 2 else 1 for i, shape in enumerate(shapes)]
    quantizers = [learned_quantizer(count, device) for count in counts]
    scales, zero_points = ([pair[k] for pair in quantizers] for k in (0, 1))
    lows, highs, factors = [0] * 7, [15, 7, 3, 255, 15, 15, 7], [0.1 * i for i in range(7)]
    assert_each_as_alone(xs, scales, zero_points, lows, highs, factors)


@pytest.mark.parametrize("device", DEVICES)
def test_more_tensors_than_one_launch_takes(device):
    xs = [sample(1 + i % 5, 10 * i + 1, device=device, seed=i) for i in range(80)]
    quantizers = [learned_quantizer(len(x), device) for x in xs]
    scales, zero_points = ([pair[k] for pair in quantizers] for k in (0, 1))
    assert_each_as_alone(xs, scales, zero_points, [0] * 80, [15] * 80, [0.1] * 80)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_keep_their_memory_format(device):
    x = channels_last(sample(6, 5, 3, 3, device=device)).requires_grad_()
    quantizer = learned_quantizer(6, device)
    incoming = channels_last(sample(6, 5, 3, 3, device=device, seed=1))
    (y,) = lsq_fake_quantize_foreach([x], *([v] for v in quantizer), [0], [15], [1.0])
    found = [y, *torch.autograd.grad(y, (x, *quantizer), incoming)]
    plain = x.detach().contiguous().requires_grad_()
    y = lsq_fake_quantize(plain, *quantizer, 0, 15, 0)
    expected = [y, *torch.autograd.grad(y, (plain, *quantizer), incoming.contiguous())]
    assert found[0].stride() == found[1].stride() == x.stride()
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
    assert same_bits(found[0], expected[0])
    assert same_bits(found[1], expected[1])


@pytest.mark.parametrize("device", DEVICES)
def test_within_half_a_step_beyond_the_bounds_the_rounded_integer_decides(device):
    steps = [7.4, 7.6, -8.4, -8.6]  # in steps of the scale; the bounds are -8 and 7
    x = torch.tensor(steps, device=device).mul(0.5).view(4, 1).requires_grad_()
    scale = torch.full((4,), 0.5, device=device, requires_grad=True)
    zero_point = torch.zeros(4, device=device, requires_grad=True)
    y = lsq_fake_quantize(x, scale, zero_point, -8, 7, 0)
    by_x, by_scale = torch.autograd.grad(y.sum(), (x, scale))
    assert by_x.flatten().tolist() == [1, 0, 1, 0]
    # Equation 3 of LSQ gives 7 and -8 everywhere here.
    assert by_scale.tolist() == pytest.approx([7 - 7.4, 7, -8 + 8.4, -8], abs=1e-6)
    theirs = torch_result(x, scale, zero_point, -8, 7, 0, 1.0)
    wanted = torch.autograd.grad(theirs.sum(), (x, scale))
    assert torch.equal(by_x, wanted[0])
    torch.testing.assert_close(by_scale, wanted[1])
