"""`fake_quantize` against torch's own ops, bit for bit, and against literal values."""

import math

import pytest
import torch
from tensors import (
    BOUNDS,
    DEVICES,
    DTYPES,
    HALF_DTYPES,
    LAYOUTS,
    SIZES,
    channels_last,
    dtype_name,
    same_bits,
    same_values,
    sample,
)
from torch import Tensor

from zscgan_ext.ops import fake_quantize

pytestmark = pytest.mark.usefixtures("implementation")

AXES = {
    "nchw": ((3, 5, 4, 7), 1),
    "weights": ((6, 3, 3, 3), 0),
    "last-axis": ((4, 3, 10), -1),
    "columns": ((37, 19), 1),
    "one-row": ((1, 300), 1),
    "vector": ((300,), 0),
}


def quantizer(count, low, high, device="cpu"):
    """Different scales and integer zero points for each channel."""
    scale = torch.linspace(0.01, 0.3, count, device=device)
    return scale, torch.linspace(low, high, count, device=device).round()


def torch_result(x, scale, zero_point, low, high, axis=None):
    """What torch's own op gives for float32."""
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(
            x, scale.reshape(()), zero_point.reshape(()).int(), low, high
        )
    return torch.fake_quantize_per_channel_affine(
        x, scale, zero_point.int(), axis % x.dim(), low, high
    )


def assert_bits_of_torch(x, scale, zero_point, low, high, axis=None):
    mine, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
    incoming = sample(*x.shape, device=x.device, seed=1)
    y = fake_quantize(mine, scale, zero_point, low, high, axis)
    expected = torch_result(theirs, scale, zero_point, low, high, axis)
    assert same_bits(y, expected)
    (grad,) = torch.autograd.grad(y, mine, incoming)
    (expected_grad,) = torch.autograd.grad(expected, theirs, incoming)
    assert same_values(grad, expected_grad)
    return grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("scale", [1e-30, 3e-5, 0.1, 1 / 3, 7.7, 1e30])
def test_per_tensor_has_the_bits_of_torch(device, low, high, scale):
    steps = torch.cat([sample(500) * (high - low), torch.arange(low - 3, high + 4) / 2])
    zero_point = torch.tensor([float((low + high) // 2)], device=device)
    x = (steps.double() * scale).float().to(device)
    grad = assert_bits_of_torch(x, torch.tensor([scale], device=device), zero_point, low, high)
    assert 0 < (grad == 0).sum() < grad.numel()  # some values were clamped and some were not


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("case", AXES)
def test_per_channel_has_the_bits_of_torch(device, low, high, case):
    shape, axis = AXES[case]
    x = sample(*shape, device=device)
    assert_bits_of_torch(x, *quantizer(shape[axis], low, high, device), low, high, axis)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_vectors_and_tasks(device, size):
    for shape, axis in (((size,), None), ((size // 3 + 1, 3), 1), ((2, size), 0)):
        count = 1 if axis is None else shape[axis]
        scale, zero_point = quantizer(count, -8, 7, device)
        assert_bits_of_torch(sample(*shape, device=device), scale, zero_point, -8, 7, axis)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_any_layout_gives_the_same_values(device, layout, axis):
    x = LAYOUTS[layout](sample(3, 5, 4, 7, device=device)).requires_grad_()
    scale, zero_point = quantizer(1 if axis is None else x.shape[axis], 0, 15, device)
    incoming = LAYOUTS[layout](sample(*x.shape, device=device, seed=1))
    y = fake_quantize(x, scale, zero_point, 0, 15, axis)
    (grad,) = torch.autograd.grad(y, x, incoming)
    flat = x.detach().contiguous().requires_grad_()
    expected = torch_result(flat, scale, zero_point, 0, 15, axis)
    (expected_grad,) = torch.autograd.grad(expected, flat, incoming.contiguous())
    assert same_bits(y, expected)
    assert same_values(grad, expected_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("axis", [None, 1])
def test_memory_format_is_kept_both_ways(device, layout, grad_layout, axis):
    x = LAYOUTS[layout](sample(2, 3, 4, 5, device=device)).requires_grad_()
    y = fake_quantize(x, *quantizer(1 if axis is None else 3, -8, 7, device), -8, 7, axis)
    incoming = LAYOUTS[grad_layout](sample(2, 3, 4, 5, device=device, seed=1))
    (grad,) = torch.autograd.grad(y, x, incoming)
    assert y.stride() == x.stride()
    assert grad.stride() == x.stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_half_types_are_float32_rounded_once(device, dtype, axis):
    x = channels_last(sample(4, 17, 3, 11, dtype=dtype, device=device)).requires_grad_()
    scale, zero_point = quantizer(1 if axis is None else x.shape[axis], 0, 15, device)
    y = fake_quantize(x, scale, zero_point, 0, 15, axis)
    wide = x.detach().float().contiguous().requires_grad_()
    expected = torch_result(wide, scale, zero_point, 0, 15, axis)
    assert same_bits(y, expected.to(dtype))
    incoming = sample(*x.shape, dtype=dtype, device=device, seed=1)
    (grad,) = torch.autograd.grad(y, x, incoming)
    (expected_grad,) = torch.autograd.grad(expected, wide, incoming.float())
    assert same_values(grad, expected_grad.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("step", [1e-3, 0.37, 1000.0])
def test_every_half_number(device, dtype, step):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).to(device)
    x = x[x.isfinite()]
    scale, zero_point = torch.tensor([step], device=device), torch.tensor([3.0], device=device)
    y = fake_quantize(x, scale, zero_point, -1000000, 1000000)
    integer = ((x.float() * (1 / scale)).round() + 3).clamp(-1000000, 1000000)
    assert same_values(y, ((integer - 3) * scale).to(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_float64_is_computed_in_float64(device):
    x = sample(1000, dtype=torch.float64, device=device)
    scale = torch.tensor([0.25 + 2**-40], dtype=torch.float64, device=device)
    y = fake_quantize(x, scale, torch.zeros_like(scale), -8, 7)
    inverse = 1 / scale.item()  # Python rounds ties to even, too
    expected = [max(-8, min(7, round(v * inverse))) * scale.item() for v in x.tolist()]
    assert same_values(y, torch.tensor(expected, dtype=torch.float64, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("axis", [None, 0, 1], ids=["per-tensor", "rows", "columns"])
def test_special_values(device, dtype, axis):
    largest, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 4
    values = [math.nan, math.inf, -math.inf, largest, -largest, tiny, -tiny, -0.0, 0.625, 0.875]
    wanted = [math.nan, 1.5, -0.5, 1.5, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0]
    passes = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    x = torch.tensor([values] * 10, dtype=dtype, device=device).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.full((1 if axis is None else 10,), 0.25, dtype=wide, device=device)
    y = fake_quantize(x, scale, torch.full_like(scale, 2), 0, 8, axis)
    assert same_bits(y, torch.tensor([wanted] * 10, dtype=dtype, device=device))
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, 3))
    assert same_values(grad, 3 * torch.tensor([passes] * 10, dtype=dtype, device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_nan_gradient_of_a_clamped_value_is_zero(device):
    x = torch.tensor([0.0, 9.0], device=device, requires_grad=True)
    y = fake_quantize(x, torch.ones(1, device=device), torch.zeros(1, device=device), -4, 3)
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, math.nan))
    assert same_values(grad, torch.tensor([math.nan, 0.0], device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0,), (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
@pytest.mark.parametrize("axis", [None, -1, 0])
def test_empty(device, shape, axis):
    x = torch.empty(shape, device=device, requires_grad=True)
    y = fake_quantize(x, *quantizer(1 if axis is None else shape[axis], 0, 3, device), 0, 3, axis)
    assert y.shape == x.shape
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.shape == x.shape


class WithoutGradient(torch.autograd.Function):
    """Passes a tensor on, and nothing back."""

    @staticmethod
    def forward(ctx, x) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad) -> None:
        return None


@pytest.mark.parametrize("device", DEVICES)
def test_what_comes_after_may_have_no_gradient(device):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    others = torch.randn(3, 4, device=device, requires_grad=True)
    scale, zero_point = torch.ones(1, device=device), torch.zeros(1, device=device)
    y = fake_quantize(x, scale, zero_point, -8, 7)
    (WithoutGradient.apply(y) + others).sum().backward()
    assert x.grad is None
    assert torch.equal(others.grad, torch.ones_like(others))


@pytest.mark.parametrize("device", DEVICES)
def test_only_x_gets_a_gradient(device):
    scale = torch.ones(1, device=device, requires_grad=True)
    zero_point = torch.zeros(1, device=device, requires_grad=True)
    assert not fake_quantize(sample(5, device=device), scale, zero_point, -8, 7).requires_grad
    scalar = torch.tensor(1.2, device=device, requires_grad=True)
    y = fake_quantize(scalar, scale, zero_point, -8, 7)
    y.backward()
    assert (y.item(), scalar.grad.item()) == (1, 1)
    assert scale.grad is None
    assert zero_point.grad is None


@pytest.mark.parametrize("device", DEVICES)
def test_zero_points_are_rounded(device):
    x = sample(4, 6, 5, device=device)
    scale, zero_point = torch.full((6,), 0.25, device=device), torch.linspace(-2.5, 2.5, 6)
    rounded = fake_quantize(x, scale, zero_point.round().to(device), -8, 7, 1)
    assert same_bits(fake_quantize(x, scale, zero_point.to(device), -8, 7, 1), rounded)


@pytest.mark.parametrize("device", DEVICES)
def test_ties_are_those_of_integer_zero_points(device):
    x = torch.tensor([[-1.5, -0.5, 0.5, 1.5]], device=device)
    scale, zero_point = torch.ones(1, device=device), torch.ones(1, device=device)
    y = fake_quantize(x, scale, zero_point, 0, 15, 0)
    assert y.tolist() == [[-1, 0, 0, 2]]
    whole = torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), 0, 0, 15)
    assert same_values(y, whole)
    with_floats = torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, 0, 15)
    assert with_floats.tolist() == [[-1, -1, 1, 1]]  # torch rounds x / scale + zero_point here
