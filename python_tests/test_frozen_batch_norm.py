"""`frozen_batch_norm` and `frozen_batch_norm_with_stats` against torch's functions in float64."""

import pytest
import torch
from tensors import (
    DEVICES,
    DTYPES,
    LAYOUTS,
    SIZES,
    channels_last,
    dtype_name,
    misaligned,
    relative_error,
    same_bits,
    same_values,
    sample,
)
from torch.nn import functional

from zscgan_ext.ops import (
    ACTIVATIONS,
    batch_norm_statistics,
    frozen_batch_norm,
    frozen_batch_norm_with_stats,
    reference,
)
from zscgan_ext.ops.layout import compute_dtype, ensure_dense

pytestmark = pytest.mark.usefixtures("implementation")

EPS = 1e-5
TORCH_ACTIVATIONS = {"none": lambda x: x, "relu": functional.relu, "relu6": functional.relu6}


class Stored:
    """A batch norm's weight, bias and stored statistics, in float64."""

    def __init__(self, channels, device):
        options = {"dtype": torch.float64, "device": device}
        self.weight, self.bias = (sample(channels, seed=seed, **options) for seed in (10, 11))
        self.mean = sample(channels, seed=12, **options)
        self.variance = sample(channels, seed=13, **options).square() + 0.5

    def vectors(self, dtype):
        """Multiplier, offset and shift."""
        multiplier = self.weight / (self.variance + EPS).sqrt()
        offset = self.bias - self.mean * multiplier
        return [values.to(dtype) for values in (multiplier, offset, self.mean)]

    def truth(self, x, activation, residual):
        """The input of the activation, its result, mean and variance, differentiable."""
        x = x.double()
        before = functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias, eps=EPS)
        before = before if residual is None else before + residual.double()
        dimensions = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(x, dimensions, correction=0)
        return before, TORCH_ACTIVATIONS[activation](before), mean, variance


def tolerance(dtype):
    """Rounding of the result, and of float32 arithmetic where the result is narrower."""
    return 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps + 2e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "residual"])
def test_values(device, dtype, layout, activation, has_residual):
    x = LAYOUTS[layout](3 * sample(4, 5, 6, 9, dtype=dtype, device=device))
    residual = sample(4, 5, 6, 9, dtype=dtype, device=device, seed=1) if has_residual else None
    stored = Stored(5, device)
    multiplier, offset, shift = stored.vectors(compute_dtype(x))
    y, *statistics = frozen_batch_norm_with_stats(
        x, multiplier, offset, shift, activation, residual
    )
    _, expected, *_ = stored.truth(x, activation, residual)
    assert (y.double() - expected).abs().max() <= 20 * tolerance(dtype)
    assert (y.dtype, y.stride()) == (dtype, ensure_dense(x, 1).stride())
    assert same_bits(y, frozen_batch_norm(x, multiplier, offset, activation, residual))
    for values, wanted in zip(statistics, batch_norm_statistics(x, shift), strict=True):
        assert same_bits(values, wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "residual"])
def test_gradients(device, dtype, layout, activation, has_residual):
    shape = (4, 5, 3, 9)
    x = LAYOUTS[layout](3 * sample(*shape, dtype=dtype, device=device)).requires_grad_()
    wanted = [x]
    if has_residual:
        wanted.append(sample(*shape, dtype=dtype, device=device, seed=1).requires_grad_())
    stored = Stored(5, device)
    vectors = stored.vectors(compute_dtype(x))
    outputs = frozen_batch_norm_with_stats(x, *vectors, activation, *wanted[1:])
    given = [sample(*v.shape, dtype=v.dtype, device=device, seed=7) for v in outputs]
    actual = torch.autograd.grad(outputs, wanted, given)

    exact = [v.detach().double().requires_grad_() for v in wanted]
    before, *results = stored.truth(exact[0], activation, exact[1] if has_residual else None)
    expected = torch.autograd.grad(results, exact, [v.double() for v in given])
    # Rounding may move a value across a bound of the activation.
    clear = (before.abs() > 0.05) & ((before - 6).abs() > 0.05)
    for gradient, true, tensor in zip(actual, expected, wanted, strict=True):
        assert gradient.dtype == dtype
        assert gradient.shape == tensor.shape
        assert ((gradient.double() - true)[clear]).abs().max() <= 10 * tolerance(dtype)
    if layout in ("contiguous", "channels_last"):
        assert actual[0].stride() == x.stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("matched", [False, True], ids=["eval", "matched"])
def test_bounds_and_bad_values_are_those_of_torch(device, activation, has_residual, matched):
    special = [0.0, -0.0, 6.0, -6.0, 1e-45, -1e-45, 5.9999995, 6.0000005, 3.0, -3.0]
    special += [float("inf"), float("-inf"), float("nan")]
    values = torch.tensor(special, device=device).repeat(2, 3, 4).requires_grad_()
    one, zero = torch.ones(3, device=device), torch.zeros(3, device=device)
    vectors = (one, zero, zero) if matched else (one, zero)
    op = frozen_batch_norm_with_stats if matched else frozen_batch_norm
    residual = torch.zeros_like(values).requires_grad_() if has_residual else None
    y = op(values, *vectors, activation, residual)
    y = y[0] if matched else y
    expected = TORCH_ACTIVATIONS[activation](values)
    assert same_values(y, expected)
    given = torch.linspace(1, 2, y.numel(), device=device).view_as(y)
    (true,) = torch.autograd.grad(expected, values, given)
    if activation == "relu6":  # torch's own depends on the place of the NaN in a vector
        true = torch.where(values.isnan(), given, true)
    for wanted in (values, residual) if has_residual else (values,):
        assert same_values(torch.autograd.grad(y, wanted, given, retain_graph=True)[0], true)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "residual"])
def test_some_outputs_alone(device, activation, used, has_residual):
    options = {"dtype": torch.float64, "device": device}
    x = sample(4, 3, 5, 5, **options).requires_grad_()
    residual = sample(4, 3, 5, 5, seed=1, **options).requires_grad_() if has_residual else None
    stored = Stored(3, device)
    outputs = frozen_batch_norm_with_stats(x, *stored.vectors(x.dtype), activation, residual)
    _, *results = stored.truth(x, activation, residual)
    wanted = [x, residual] if has_residual else [x]
    for gradient, true in zip(
        torch.autograd.grad(
            [outputs[i] for i in used], wanted, [outputs[i] for i in used], allow_unused=True
        ),
        torch.autograd.grad(
            [results[i] for i in used], wanted, [results[i] for i in used], allow_unused=True
        ),
        strict=True,
    ):
        assert (gradient is None) == (true is None)
        if true is not None:
            torch.testing.assert_close(gradient, true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "residual"])
def test_gradcheck(device, activation, has_residual):
    options = {"dtype": torch.float64, "device": device}
    inputs = [sample(3, 4, 2, 3, seed=seed, **options) for seed in range(1 + has_residual)]
    vectors = Stored(4, device).vectors(torch.float64)
    for op, given in ((frozen_batch_norm_with_stats, vectors), (frozen_batch_norm, vectors[:2])):
        torch.autograd.gradcheck(
            lambda x, *residual, op=op, given=given: op(x, *given, activation, *residual),
            [x.requires_grad_() for x in inputs],
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_vectors_and_tasks(device, size):
    for shape in ((1, 1, size), (size, 3), (2, 3, size)):
        x = misaligned(sample(*shape, device=device)).requires_grad_()
        residual = sample(*shape, device=device, seed=1)
        multiplier, offset, shift = Stored(shape[1], device).vectors(torch.float32)
        for added in (None, residual):
            y, *_ = frozen_batch_norm_with_stats(x, multiplier, offset, shift, "relu6", added)
            expected = reference.frozen_batch_norm(x, multiplier, offset, added, "relu6")
            torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
            (gradient,) = torch.autograd.grad(y, x, residual)
            mask = ((y > 0) & (y < 6)).view(shape)
            true = residual * mask * multiplier.view(-1, *[1] * (x.dim() - 2))
            torch.testing.assert_close(gradient, true, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last"])
def test_residual_and_gradient_of_any_strides(device, layout, x_layout):
    first, second, third = (sample(2, 3, 4, 5, device=device, seed=seed) for seed in range(3))
    vectors = Stored(3, device).vectors(torch.float32)
    outcomes = []
    for change in (torch.clone, LAYOUTS[layout]):
        x = LAYOUTS[x_layout](first).requires_grad_()
        residual = change(second[..., :1].expand(second.shape)).requires_grad_()
        given = change(third[..., :1].expand(third.shape))
        y, *_ = frozen_batch_norm_with_stats(x, *vectors, "relu", residual)
        outcomes.append((y, *torch.autograd.grad(y, (x, residual), given)))
        assert y.stride() == x.stride()
    assert all(same_bits(*values) for values in zip(*outcomes, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0), (2, 0, 4)], ids=str)
def test_empty(device, shape):
    x = torch.empty(shape, device=device, requires_grad=True)
    residual = torch.empty(shape, device=device, requires_grad=True)
    vectors = [torch.ones(shape[1], device=device)] * 3
    y = frozen_batch_norm(x, *vectors[:2], "relu", residual)
    assert y.shape == shape
    assert all(v.shape == shape for v in torch.autograd.grad(y.sum(), (x, residual)))
    if shape[1] > 0:
        with pytest.raises(ValueError, match="x: expected values to take statistics of, got none"):
            frozen_batch_norm_with_stats(x, *vectors, "relu", residual)
        return
    y, mean, variance = frozen_batch_norm_with_stats(x, *vectors, "relu", residual)
    assert y.shape == shape
    assert mean.shape == variance.shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_variances_up_to_the_largest_float(device, layout):
    x = LAYOUTS[layout](3e18 * sample(8, 5, 30, 31, device=device).sign())
    vectors = [torch.ones(5, device=device)] * 2
    y, _, variance = frozen_batch_norm_with_stats(x, *vectors, torch.zeros(5, device=device))
    assert torch.equal(y, x + 1)
    true_variance, _ = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert relative_error(variance, true_variance) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_one_element(device):
    x = torch.tensor([[3.0]], device=device, requires_grad=True)
    vectors = [torch.tensor([v], device=device) for v in (2.0, -1.0, 0.5)]
    y, mean, variance = frozen_batch_norm_with_stats(x, *vectors, "relu")
    assert [y.item(), mean.item(), variance.item()] == [5, 3, 0]
    assert torch.autograd.grad(y + mean + variance, x)[0].item() == 3


def saved_addresses(run):
    """Where the tensors with more than one dimension lie that autograd keeps for a call."""
    kept = []

    def pack(tensor):
        if tensor.dim() > 1:
            kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return run(), kept


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "residual"])
def test_nothing_is_saved_that_lives_not_anyway(device, activation, has_residual):
    x = channels_last(sample(2, 3, 4, 5, device=device)).requires_grad_()
    residual = channels_last(sample(2, 3, 4, 5, device=device, seed=1)) if has_residual else None
    vectors = Stored(3, device).vectors(torch.float32)
    (y, *_), kept = saved_addresses(
        lambda: frozen_batch_norm_with_stats(x, *vectors, activation, residual)
    )
    masked_by_y = has_residual and activation != "none"
    assert kept == [x.data_ptr(), *([y.data_ptr()] if masked_by_y else [])]
    y, kept = saved_addresses(lambda: frozen_batch_norm(x, *vectors[:2], activation, residual))
    assert kept == ([] if activation == "none" else [y.data_ptr()])


@pytest.mark.parametrize("device", DEVICES)
def test_without_activation_the_residual_gets_the_gradient_itself(device):
    x, residual, given = (sample(2, 3, 4, device=device, seed=seed) for seed in range(3))
    vectors = Stored(3, device).vectors(torch.float32)
    y, mean, _ = frozen_batch_norm_with_stats(
        x.requires_grad_(), *vectors, "none", residual.requires_grad_()
    )
    ones = torch.ones_like(mean)
    _, gradient = torch.autograd.grad((y, mean), (x, residual), (given, ones))
    assert gradient.data_ptr() == given.data_ptr()


@pytest.mark.parametrize("device", DEVICES)
def test_only_x_and_residual_get_gradients(device):
    x = sample(2, 3, 4, device=device)
    vectors = [values.requires_grad_() for values in Stored(3, device).vectors(torch.float32)]
    assert not any(v.requires_grad for v in frozen_batch_norm_with_stats(x, *vectors, "relu"))
    residual = sample(2, 3, 4, device=device, seed=1).requires_grad_()
    y, *_ = frozen_batch_norm_with_stats(x, *vectors, "relu", residual)
    (gradient,) = torch.autograd.grad(y.sum(), residual)
    assert same_bits(gradient, (y > 0).float())
