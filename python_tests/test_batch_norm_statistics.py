"""`batch_norm_statistics` against float64."""

import pytest
import torch
from tensors import DEVICES, DTYPES, LAYOUTS, SIZES, dtype_name, relative_error, sample

from zscgan_ext.ops import batch_norm_statistics

pytestmark = pytest.mark.usefixtures("implementation")

SHAPES = {
    "nchw": (6, 5, 9, 11),
    "matrix": (300, 17),
    "long-rows": (2, 3, 40, 1000),
    "many-channels": (9, 300, 3),
    "one-position": (130, 33, 1, 1),
    "five-dimensions": (3, 4, 2, 5, 3),
    "folded-and-split": (16, 100, 9, 9),  # in channels_last one block merges more than a tile
}


def true_statistics(x):
    """Mean and biased variance in float64."""
    dimensions = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x.double(), dimensions, correction=0)
    return mean, variance


def assert_statistics(x, shift, tolerance):
    mean, variance = batch_norm_statistics(x, shift)
    true_mean, true_variance = true_statistics(x)
    deviation = true_variance.sqrt()
    assert ((mean.double() - true_mean) / (true_mean.abs() + deviation)).abs().max() < tolerance
    assert relative_error(variance, true_variance) < tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mean_and_variance(device, dtype, layout, shape):
    x = LAYOUTS[layout](2 * sample(*SHAPES[shape], dtype=dtype, device=device) + 0.5)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shift = true_statistics(x)[0].to(wide)
    assert_statistics(x, shift, 1e-12 if dtype == torch.float64 else 1e-6)
    assert all(values.dtype == wide for values in batch_norm_statistics(x, shift))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("center", "distance", "tolerance"), [(300, 0, 1e-6), (5, 5, 2e-5)])
def test_means_far_from_zero_and_from_the_shift(device, layout, center, distance, tolerance):
    x = LAYOUTS[layout](sample(32, 8, 28, 28, device=device) + center)
    shift = torch.full((8,), float(center - distance), device=device)
    assert_statistics(x, shift, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [size for size in SIZES if size > 1])
def test_sizes_around_vectors_and_tasks(device, size):
    for shape in ((1, 1, size), (size, 3), (2, 3, size)):
        x = sample(*shape, device=device)
        assert_statistics(x, torch.zeros(shape[1], device=device), 1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_one_element_has_no_variance(device):
    shift = torch.tensor([1.0, 2.0], device=device)
    mean, variance = batch_norm_statistics(torch.tensor([[3.0, -5.0]], device=device), shift)
    assert (mean.tolist(), variance.tolist()) == ([3, -5], [0, 0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_constant_channels_have_exact_statistics(device, layout):
    x = torch.ones(4, 3, 5, 5, device=device) * torch.tensor([0.1, -7.0, 3e4], device=device).view(
        1, 3, 1, 1
    )
    shift = x[0, :, 0, 0].contiguous()
    mean, variance = batch_norm_statistics(LAYOUTS[layout](x), shift)
    assert torch.equal(mean, shift)
    assert torch.equal(variance, torch.zeros_like(variance))


@pytest.mark.parametrize("device", DEVICES)
def test_variance_is_never_negative(device):
    x = torch.full((50, 4, 7, 7), 1000.1, device=device)
    _, variance = batch_norm_statistics(x, torch.zeros(4, device=device))
    assert (variance >= 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bad_values_stay_in_their_channel(device, layout):
    x = sample(4, 3, 5, 5, device=device)
    x[1, 0, 2, 2], x[1, 2, 2, 2] = float("nan"), float("inf")
    mean, variance = batch_norm_statistics(LAYOUTS[layout](x), torch.zeros(3, device=device))
    assert mean.isfinite().tolist() == variance.isfinite().tolist() == [False, True, False]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("op", [batch_norm_statistics, torch.ops.zscgan_ext.batch_norm_statistics])
def test_channels_without_values_have_no_statistics(device, shape, op):
    with pytest.raises(ValueError, match="x: expected values to take statistics of, got none"):
        op(torch.empty(shape, device=device), torch.zeros(shape[1], device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_no_channels(device):
    x = torch.empty(2, 0, 4, device=device, requires_grad=True)
    mean, variance = batch_norm_statistics(x, torch.zeros(0, device=device))
    assert mean.shape == variance.shape == (0,)
    (grad,) = torch.autograd.grad(mean.sum() + variance.sum(), x)
    assert grad.shape == x.shape


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("magnitude", [1e15, 1e18, 3e18, 1.5e19])
@pytest.mark.parametrize("shape", [(500, 1), (10, 5, 7, 7), (3, 2, 80, 83), (40, 24, 16, 16)])
def test_variances_up_to_the_largest_float(device, dtype, layout, magnitude, shape):
    x = magnitude * sample(*shape).sign()
    x[:, -1] = sample(*x[:, -1].shape)  # a channel of ordinary values beside it
    if shape[1] == 1:
        x = magnitude * torch.tensor([[1.0], [-1.0]]).repeat(250, 1)
    x = LAYOUTS[layout](x.to(device, dtype))
    assert_statistics(x, torch.zeros(shape[1], device=device), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_single_value_too_large_to_be_squared(device, layout):
    x = torch.zeros(64, 3, 32, 32, device=device)
    x[5, 1, 3, 3] = 1e21  # its square is no float32 number, the variance is
    statistics = batch_norm_statistics(LAYOUTS[layout](x), torch.zeros(3, device=device))
    mean, variance = (values.tolist() for values in statistics)
    assert mean == pytest.approx([0, 1e21 / 65536, 0])
    assert variance == pytest.approx([0, 1e42 / 65536 * (1 - 1 / 65536), 0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient(device, dtype, layout):
    x = LAYOUTS[layout](sample(4, 5, 3, 7, dtype=dtype, device=device)).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights = sample(2, 5, dtype=wide, device=device, seed=1)
    mean, variance = batch_norm_statistics(x, torch.zeros(5, dtype=wide, device=device))
    (grad,) = torch.autograd.grad((weights * torch.stack([mean, variance])).sum(), x)
    exact = x.detach().double().requires_grad_()
    loss = (weights.double() * torch.stack(true_statistics(exact))).sum()
    (expected,) = torch.autograd.grad(loss, exact)
    limit = expected.abs().max() * max(torch.finfo(dtype).eps, 1e-6 if wide != dtype else 0) * 4
    assert grad.dtype == dtype
    assert (grad.double() - expected).abs().max() <= limit
    if layout in ("contiguous", "channels_last"):
        assert grad.stride() == x.stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wanted", [0, 1], ids=["mean", "variance"])
def test_one_output_alone(device, wanted):
    x = sample(4, 3, 5, device=device).requires_grad_()
    output = batch_norm_statistics(x, torch.zeros(3, device=device))[wanted]
    (grad,) = torch.autograd.grad(output.sum(), x)
    (expected,) = torch.autograd.grad(true_statistics(x)[wanted].sum(), x)
    assert torch.allclose(grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device):
    x = sample(3, 4, 2, 3, dtype=torch.float64, device=device).requires_grad_()
    shift = sample(4, dtype=torch.float64, device=device, seed=1)
    assert torch.autograd.gradcheck(lambda x: batch_norm_statistics(x, shift), x)
