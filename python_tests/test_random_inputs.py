"""Native core against reference for shapes, layouts, values and ranges that hypothesis makes up."""

import math

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from tensors import DTYPES, LAYOUTS, same_bits, same_values

from zscgan_ext.ops import ACTIVATIONS, native, reference
from zscgan_ext.ops.batch_norm_matching import DISTANCES
from zscgan_ext.ops.layout import compute_dtype, ensure_dense

APART = 4099  # elements from one to the next where strides are huge
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, 0.5, 1.5, -2.5)
# Scales that no quantizer should have, some of them denormal, and beyond what reciprocals bear.
HOSTILE = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e-40, 3e-39, 3e38, -1.0, 1.0)


def far_apart(x):
    """Copy x to places in memory that are thousands of elements from each other."""
    buffer = torch.empty(x.numel() * APART + 1, dtype=x.dtype)
    strides = [stride * APART for stride in x.contiguous().stride()]
    return buffer.as_strided(x.shape, strides, 1).copy_(x)


def at_offset(x, offset):
    """Copy x to an address that many elements behind an aligned one."""
    return torch.empty(x.numel() + offset, dtype=x.dtype)[offset:].view(x.shape).copy_(x)


@st.composite
def tensors(draw, dimensions=(1, 5), finite=False):
    """A tensor of any dtype and layout, sliced or not, with zero sizes, special values."""
    shape = draw(st.lists(st.integers(0, 7), min_size=dimensions[0], max_size=dimensions[1]))
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(0, 700))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x *= 10.0 ** draw(st.integers(-4, 4))
    if not finite and x.numel():
        for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=4)):
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = value
    x = x.to(draw(st.sampled_from(DTYPES)))
    x = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](x)
    if draw(st.booleans()):
        x = far_apart(x) if x.numel() <= 300 and draw(st.booleans()) else x
        x = at_offset(x, draw(st.integers(1, 67))) if x.is_contiguous() else x
    return x[draw(st.integers(0, 2)) :] if draw(st.booleans()) else x


def memory_order(x):
    """Strides of the dimensions that have several entries; none if x is empty."""
    sizes = zip(x.shape, x.stride(), strict=True)
    return [stride for size, stride in sizes if size > 1 and x.numel()]


@st.composite
def quantizations(draw):
    """A tensor, an axis, its scales and zero points, and the bounds."""
    x = draw(tensors())
    axis = draw(st.sampled_from([None, *range(x.dim())]))
    count = 1 if axis is None else x.shape[axis]
    low = draw(st.integers(-128, 100))
    high = draw(st.integers(low + 1, low + 255))
    exponents = torch.linspace(*(draw(st.integers(-30, 30)) for _ in range(2)), max(count, 1))
    scale = (10.0 ** exponents.double())[:count].to(compute_dtype(x))
    zero_point = torch.linspace(low - 2.4, high + 2.4, max(count, 1), dtype=scale.dtype)[:count]
    return ensure_dense(x, axis), scale, zero_point, low, high, axis


@settings(max_examples=250, deadline=None, derandomize=True)
@given(quantizations())
def test_fake_quantize(case):
    x, scale, zero_point, *bounds, axis = case
    outcomes = []
    for module in (native, reference):
        y, mask = module.fake_quantize(x, scale, zero_point.round(), *bounds, axis, True)
        outcomes.append((y, mask, module.fake_quantize_backward(x, mask)))
    for actual, expected in zip(*outcomes, strict=True):
        assert same_bits(actual, expected)
        assert memory_order(actual) == memory_order(expected)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(quantizations(), st.floats(0, 2), st.sampled_from(["none", "relu", "relu6"]), st.booleans())
def test_lsq_fake_quantize(case, factor, activation, with_bias):
    x, scale, zero_point, low, high, axis = case
    bias = None
    if with_bias and x.dim() > 1 and axis in (None, 1):
        x = ensure_dense(x, 1)
        bias = torch.linspace(-1, 1, x.shape[1], dtype=scale.dtype)
    grad = x.flip(0).nan_to_num(1, 2, -2).clamp(-100, 100)
    grad = torch.empty_like(x).copy_(grad)
    outcomes = []
    for module in (native, reference):
        settings_ = ([x], [scale], [zero_point], [low], [high])
        stage = ([activation], [bias])
        (y,) = module.lsq_fake_quantize(*settings_, [axis], *stage)
        columns = module.lsq_fake_quantize_backward([grad], *settings_, [axis], [factor], *stage)
        gradients = [column[0] for column in columns]
        outcomes.append((y, *(gradients[:3] if bias is None else gradients)))
    (y, grad_x, *sums), (expected_y, expected_grad_x, *expected_sums) = outcomes
    assert same_bits(y, expected_y)
    assert same_bits(grad_x, expected_grad_x)
    size = grad.double().abs().sum().item()
    largest_terms = (factor * (high - low + 1.0), factor * max(scale.tolist(), default=0.0), 1.0)
    for actual, wanted, term in zip(sums, expected_sums, largest_terms[: len(sums)], strict=True):
        limit = 1e-5 * size * term
        same = (actual == wanted) | (actual.isnan() & wanted.isnan())
        assert (same | ((actual - wanted).abs() <= limit)).all()


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.lists(tensors(), min_size=1, max_size=3),
    st.floats(0, 1),
    st.integers(-128, 0),
    st.booleans(),
    st.integers(-1, 4),
)
def test_observe(xs, constant, low, symmetric, axis):
    for module_x in xs:
        choice = None if axis < 0 or axis >= module_x.dim() else axis
        count = 1 if choice is None else module_x.shape[choice]
        states = [
            [torch.full((count,), v) for v in (math.inf, -math.inf, 0.0, 0.0)] for _ in range(2)
        ]
        for x in (module_x, module_x * 2):
            for module, state in zip((native, reference), states, strict=True):
                observer = (constant, low, low + 255, symmetric, choice)
                module.update_min_max(ensure_dense(x, choice), *state, *observer)
            for actual, expected in zip(*states, strict=True):
                assert same_values(actual, expected)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(tensors(dimensions=(2, 5), finite=True))
def test_batch_norm_statistics(x):
    x = ensure_dense(x, 1)
    shift = torch.zeros(x.shape[1], dtype=compute_dtype(x))
    (mean, variance), (true_mean, true_variance) = (
        module.batch_norm_statistics(x, shift) for module in (native, reference)
    )
    size = x.double().abs().max().item() if x.numel() else 0.0
    torch.testing.assert_close(mean, true_mean, rtol=0, atol=1e-6 * size, equal_nan=True)
    torch.testing.assert_close(variance, true_variance, rtol=0, atol=2e-6 * size**2, equal_nan=True)
    given_ = [torch.linspace(-1, 1, x.shape[1], dtype=shift.dtype)] * 3
    grads = [module.batch_norm_statistics_backward(x, *given_) for module in (native, reference)]
    assert memory_order(grads[0]) == memory_order(grads[1]) == memory_order(x)
    tolerance = 4 * torch.finfo(x.dtype).eps
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance * max(size, 1))


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    tensors(dimensions=(2, 5)),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_frozen_batch_norm(x, activation, has_residual, masked_by_y, seed):
    x = ensure_dense(x, 1)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(6, x.shape[1], generator=generator, dtype=compute_dtype(x))
    multiplier, offset, shift, *gradient = vectors
    residual = torch.empty_like(x).copy_(x.flip(0)) if has_residual else None
    grad = torch.empty_like(x).copy_(x.nan_to_num(1, 2, -2).clamp(-100, 100))
    outcomes = []
    for module in (native, reference):
        y, *_ = module.frozen_batch_norm_with_stats(
            x, multiplier, offset, shift, residual, activation
        )
        assert same_bits(y, module.frozen_batch_norm(x, multiplier, offset, residual, activation))
        y_of_mask = y if masked_by_y or has_residual else None
        settings_ = (grad, x, y_of_mask, multiplier, offset)
        plain = module.frozen_batch_norm_backward(*settings_, None, None, None, activation, True)
        matched = module.frozen_batch_norm_backward(*settings_, *gradient, activation, False)
        outcomes.append((y, *plain, matched[0]))
    (*exact, grad_x), (*expected, expected_grad_x) = outcomes
    for actual, wanted in zip(exact, expected, strict=True):
        assert same_values(actual, wanted)
        assert memory_order(actual) == memory_order(wanted) == memory_order(x)
    # The coefficients of the statistics' gradient are rounded elsewhere.
    finite = expected_grad_x.isfinite() & grad_x.isfinite()
    assert (finite == expected_grad_x.isfinite()).all()
    size = x.double().nan_to_num(0, 0, 0).abs().max().item() if x.numel() else 0.0
    limit = 64 * torch.finfo(x.dtype).eps * (size + 100)
    assert ((grad_x.double() - expected_grad_x.double())[finite].abs() <= limit).all()


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    tensors(dimensions=(1, 2)),
    st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=7),
    st.lists(st.sampled_from((*HOSTILE, 1e9, -1e9)), min_size=1, max_size=7),
    st.sampled_from(ACTIVATIONS),
)
def test_quantizers_that_make_no_sense(x, scales, zero_points, activation):
    """Whatever an optimizer made of a scale, no implementation reads or writes elsewhere, and both
    give the same values.
    """
    x = ensure_dense(x, 0)
    count = x.shape[0]
    scale, zero_point = (
        torch.tensor((values * count)[:count], dtype=compute_dtype(x))
        for values in (scales, zero_points)
    )
    found = []
    for module in (native, reference):
        y, mask = module.fake_quantize(x, scale, zero_point, -8, 7, 0, True)
        stage = ([0], [activation], [None])
        (learned,) = module.lsq_fake_quantize([x], [scale], [zero_point], [-8], [7], *stage)
        found.append((y, mask, learned))
    for actual, expected in zip(*found, strict=True):
        assert same_values(actual, expected)


VARIANCES = (0.0, 1e-45, 5.6e-45, 1e-30, 1e-8, 0.5, 1.0, 1e10, 1e30)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(sorted(DISTANCES)),
    st.sampled_from((1e-12, 1e-5, 1e-3)),
    st.sampled_from(VARIANCES),
    st.integers(0, 2**32),
)
def test_batch_norm_distance(sizes, dtype, distance, eps, largest, seed):
    """Against the reference in double precision, which the kernels compute in for any data."""
    generator = torch.Generator().manual_seed(seed)
    columns = [
        [torch.randn(size, generator=generator, dtype=dtype) for size in sizes] for _ in range(4)
    ]
    for variances in (columns[1], columns[3]):
        for values in variances:
            values.abs_().mul_(largest)
    settings_ = ([eps] * len(sizes), distance)
    exact = reference.batch_norm_distance(
        *([values.double() for values in column] for column in columns), *settings_
    )
    for module in (native,) if dtype == torch.float32 else (native, reference):
        for actual, expected in zip(
            module.batch_norm_distance(*columns, *settings_), exact, strict=True
        ):
            assert actual.dtype == dtype
            finite = expected.abs() < torch.finfo(dtype).max / 1e6
            scale = expected[finite].abs().max() if finite.any() else torch.tensor(0.0)
            error = (actual.double() - expected)[finite].abs()
            tolerance = 1e-6 if dtype == torch.float32 else 1e-9
            assert (error <= tolerance * scale + torch.finfo(dtype).smallest_normal).all()
