"""`batch_norm_distance` against closed forms, finite differences and published losses."""

import pytest
import torch
from distances import CLOSED_FORMS, closed_form
from tensors import DEVICES, relative_error, sample

from zscgan_ext.ops import DISTANCES, batch_norm_distance, batch_norm_statistics

pytestmark = pytest.mark.usefixtures("implementation")

CHANNELS = (1, 16, 100)
EPS = (1e-5, 1e-3, 0.1)


def layers(device="cpu", dtype=torch.float32, channels=CHANNELS):
    """Batch means and variances, stored means and variances."""
    draw = [
        [
            sample(count, dtype=dtype, device=device, seed=10 * k + i)
            for i, count in enumerate(channels)
        ]
        for k in range(4)
    ]
    return draw[0], [v.exp() for v in draw[1]], draw[2], [v.exp() for v in draw[3]]


def test_every_distance_is_tested():
    assert set(CLOSED_FORMS) == set(DISTANCES)


def assert_closed_form(statistics, eps, distance):
    """Compare the distance and its gradients with the closed form's."""
    means, variances, *_ = statistics
    inputs = [v.requires_grad_() for v in means + variances]
    total = batch_norm_distance(*statistics, eps, distance)
    exact = closed_form(statistics, eps, distance)
    tolerance = 1e-12 if total.dtype == torch.float64 else 1e-6
    assert total.dtype == means[0].dtype
    assert total.shape == ()
    assert relative_error(total, exact) < tolerance
    gradients = torch.autograd.grad(3 * total, inputs)
    for actual, expected in zip(gradients, torch.autograd.grad(3 * exact, inputs), strict=True):
        assert (actual - expected).abs().max() <= 10 * tolerance * expected.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_closed_form_and_its_gradient(device, distance, dtype):
    assert_closed_form(layers(device, dtype), EPS, distance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(device, distance):
    means, variances, *stored = layers(device, torch.float64, (2, 3))
    inputs = [v.requires_grad_() for v in means + variances]
    assert torch.autograd.gradcheck(
        lambda *values: batch_norm_distance(values[:2], values[2:], *stored, (1e-3, 0.1), distance),
        inputs,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_statistics_have_distance_zero(device, distance):
    means, variances, _, _ = layers(device)
    inputs = [v.requires_grad_() for v in means + variances]
    stored = [[v.detach().clone() for v in column] for column in (means, variances)]
    total = batch_norm_distance(means, variances, *stored, EPS, distance)
    assert total.item() == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("stored", [0.0, 5.6e-45, 1e-12], ids=["zero", "denormal", "tiny"])
def test_vanishing_stored_variance(device, distance, stored):
    mean, variance = (sample(4, device=device).requires_grad_(), torch.ones(4, device=device))
    variance.requires_grad_()
    statistics = ([mean], [variance], [torch.zeros(4, device=device)])
    running_var = torch.full((4,), stored, device=device)
    total = batch_norm_distance(*statistics, [running_var], (1e-5,), distance)
    exact = closed_form((*statistics, [running_var]), (1e-5,), distance)
    assert relative_error(total, exact) < 1e-6
    gradients = torch.autograd.grad(total, (mean, variance))
    expected = torch.autograd.grad(exact, (mean, variance))
    for actual, value in zip(gradients, expected, strict=True):
        assert relative_error(actual, value) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_vanishing_batch_variance_has_finite_gradients(device, distance):
    mean, variance = torch.zeros(4, device=device), torch.zeros(4, device=device)
    inputs = (mean.requires_grad_(), variance.requires_grad_())
    stored = ([torch.ones(4, device=device)], [torch.ones(4, device=device)])
    total = batch_norm_distance([mean], [variance], *stored, (1e-5,), distance)
    gradients = torch.autograd.grad(total, inputs)
    assert all(grad.isfinite().all() and (grad < 0).all() for grad in gradients)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("statistic", [0, 1], ids=["mean", "variance"])
def test_nan_reaches_distance_and_gradient(device, distance, statistic):
    columns = layers(device, channels=(4, 3))
    columns[statistic][0][1] = torch.nan
    inputs = [v.requires_grad_() for v in columns[statistic]]
    total = batch_norm_distance(*columns, EPS[:2], distance)
    exact = closed_form(columns, EPS[:2], distance)
    assert total.isnan()
    gradients = torch.autograd.grad(total, inputs)
    assert gradients[0][1].isnan()
    for actual, expected in zip(gradients, torch.autograd.grad(exact, inputs), strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_more_layers_than_one_launch_takes(device, distance):
    channels = [1 + 7 * i % 40 for i in range(150)]
    eps = [1e-3 * (i + 1) for i in range(150)]
    assert_closed_form(layers(device, channels=channels), eps, distance)


@pytest.mark.parametrize("device", DEVICES)
def test_no_gradient_reaches_the_stored_statistics(device):
    columns = layers(device)
    inputs = [[v.requires_grad_() for v in column] for column in columns]
    batch_norm_distance(*inputs, EPS).backward()
    reached = [[v.grad is not None for v in column] for column in inputs]
    assert reached == [[True] * 3, [True] * 3, [False] * 3, [False] * 3]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_images_learn_from_statistics_and_distance_together(device, distance):
    x = sample(8, 3, 6, 6, device=device).requires_grad_()
    shift, running_var = torch.full((3,), 0.3, device=device), torch.full((3,), 2.0, device=device)
    mean, variance = batch_norm_statistics(x, shift)
    total = batch_norm_distance([mean], [variance], [shift], [running_var], [1e-3], distance)
    (grad,) = torch.autograd.grad(total, x)
    exact = x.detach().double().requires_grad_()
    true_variance, true_mean = torch.var_mean(exact, (0, 2, 3), correction=0)
    expected = closed_form(([true_mean], [true_variance], [shift], [running_var]), [1e-3], distance)
    (expected_grad,) = torch.autograd.grad(expected, exact)
    assert relative_error(total, expected) < 1e-5
    assert (grad - expected_grad).abs().max() < 1e-5 * expected_grad.abs().max()
