"""Rounding weights with regard to the second moments of a layer's input."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from zscgan_ext.quantization.bias_correction import correct_bias
from zscgan_ext.quantization.quantizers import QuantizedLayer, TransposedConvolution
from zscgan_ext.quantization.scheme import symmetric_range, unsigned_range
from zscgan_ext.quantization.second_moment_rounding import (
    COLUMNS,
    DAMPING,
    LARGEST_BLOCK,
    covariance,
    input_columns,
    round_by_second_moments,
    rounded_in_order,
)

LAYERS = {
    "plain": (lambda: nn.Conv2d(4, 6, 3), (5, 4, 7, 8)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1)), (5, 4, 7, 8)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same"), (5, 4, 7, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (5, 4, 7, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (5, 4, 7, 8)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (5, 4, 7, 8)),
    "one dimension": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (5, 4, 9)),
    "linear": (lambda: nn.Linear(4, 6), (5, 4)),
    "linear on tokens": (lambda: nn.Linear(4, 6), (5, 3, 4)),
}


def cost(rounded: Tensor, weight: Tensor, moments: Tensor) -> Tensor:
    """Return the expected squared error of each output channel, [O], of one group."""
    difference = (rounded - weight).double().flatten(1)
    return (difference @ moments * difference).sum(1)


def correlated(inputs: int, seed: int = 0) -> Tensor:
    """Return the second moments of inputs that have much in common, [1, I, I]."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(64, inputs, generator=random) + 2 * torch.randn(64, 1, generator=random)
    return (rows.T @ rows / 64).double().unsqueeze(0)


@pytest.mark.parametrize("name", LAYERS)
def test_columns_times_weights_are_the_output(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = build(), torch.randn(shape)
    columns = input_columns(layer, x, torch.Generator())
    groups, _, inputs = columns.shape
    weight = layer.weight.reshape(groups, -1, inputs)
    products = (columns @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)  # [rows, O]
    output = layer(x) - layer.bias.view(-1, *[1] * (x.dim() - 2 if "linear" not in name else 0))
    axis = -1 if "linear" in name else 1
    expected = output.movedim(axis, -1).flatten(0, -2)  # [N * places, O]
    torch.testing.assert_close(products, expected, rtol=1e-4, atol=1e-5)


def test_a_transposed_convolution_has_no_columns():
    layer = TransposedConvolution(nn.ConvTranspose2d(4, 6, 3))
    assert input_columns(layer, torch.randn(2, 4, 5, 5), torch.Generator()) is None


def rounded_by_elimination(steps: Tensor, moments: Tensor, low: int, high: int) -> Tensor:
    """Round [O, I] by GPTQ's equations 2 and 3 as they stand: one input, all later weights."""
    left, integers = steps.clone(), torch.empty_like(steps)
    inverse = (moments + DAMPING * moments.diagonal().mean() * torch.eye(len(moments))).inverse()
    remaining = moments.diagonal().argsort(descending=True).tolist()
    while remaining:
        i = remaining.pop(0)
        integers[:, i] = left[:, i].round().clamp(low, high)
        error = (left[:, i] - integers[:, i]) / inverse[i, i]
        left[:, remaining] -= error.unsqueeze(1) * inverse[i, remaining]
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return integers


@pytest.mark.parametrize("inputs", [5, COLUMNS, 2 * COLUMNS + 7])
@pytest.mark.parametrize("largest", [1, 7])
def test_one_input_after_the_other_gives_the_same_integers(inputs, largest):
    random = torch.Generator().manual_seed(inputs)
    scales = 1 + 3 * torch.rand(2, inputs, generator=random).double()
    moments = torch.cat([correlated(inputs, seed) for seed in (1, 2)])
    moments = moments * scales.unsqueeze(1) * scales.unsqueeze(2)
    steps = torch.randn(2, 9, inputs, generator=random).double() * largest / 2
    rounded = rounded_in_order(steps, moments, None, -largest, largest)
    for group in range(2):
        expected = rounded_by_elimination(steps[group], moments[group], -largest, largest)
        assert torch.equal(rounded[group], expected)


def test_settled_integers_stay_and_others_make_good_for_them():
    random = torch.Generator().manual_seed(0)
    steps = 3 * torch.randn(1, 50, 6, generator=random).double()
    moments = correlated(6)
    pinned = torch.full_like(steps, torch.nan)
    pinned[..., 2] = 7
    rounded = rounded_in_order(steps, moments, pinned, -15, 15)
    assert torch.equal(rounded[..., 2], pinned[..., 2])
    alone = steps[0].round()
    alone[:, 2] = 7
    assert float(cost(rounded[0], steps[0], moments[0]).sum()) < 0.5 * float(
        cost(alone, steps[0], moments[0]).sum()
    )


@pytest.mark.parametrize("seed", range(4))
def test_errors_are_near_the_least_that_there_are(seed):
    random = torch.Generator().manual_seed(seed)
    steps = 10 * torch.rand(1, 20, 6, generator=random).double() - 5
    moments = correlated(6, seed)
    rounded = rounded_in_order(steps, moments, None, -7, 7)
    sides = torch.tensor(list(itertools.product((0, 1), repeat=6))).double()  # [64, 6]
    differences = (steps[0].floor() + sides.unsqueeze(1)) - steps[0]  # [64, O, 6]
    least = (differences @ moments[0] * differences).sum(2).amin(0)
    found = cost(rounded[0], steps[0], moments[0])
    nearest = cost(steps[0].round(), steps[0], moments[0])
    assert float(found.sum()) < 0.6 * float(nearest.sum())
    assert float(found.sum()) < 1.5 * float(least.sum())


def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest():
    steps = torch.linspace(-7.4, 7.4, 40).double().view(1, 4, 10)
    moments = torch.diag_embed(torch.linspace(0.1, 5, 10).double()).unsqueeze(0)
    rounded = rounded_in_order(steps, moments, None, -7, 7)
    assert torch.equal(rounded, steps.round().clamp(-7, 7))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_weights_stay_on_the_grid_of_their_scales(symmetric, groups):
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 12, 3, groups=groups)
    quant_range = symmetric_range(3) if symmetric else unsigned_range(3)
    layer = QuantizedLayer(convolution, quant_range, symmetric)
    scale = layer.qparams().scale.clone()
    x = torch.randn(16, 8, 6, 6) + torch.randn(16, 1, 6, 6)
    moments = covariance(input_columns(convolution, x, torch.Generator()))
    rounded = round_by_second_moments(layer, moments)
    integers = rounded / scale.detach().view(-1, 1, 1, 1)
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
    with torch.no_grad():
        layer.layer.weight.copy_(rounded)
    torch.testing.assert_close(layer.qparams().scale, scale)
    if not symmetric:  # the quantizer, which follows the weight, gives the very same one
        torch.testing.assert_close(layer.quantize_by_min_max(), rounded)


def test_many_inputs_are_rounded_in_blocks():
    inputs = LARGEST_BLOCK + 3
    layer = QuantizedLayer(nn.Linear(inputs, 2), symmetric_range(4), symmetric=True)
    moments = torch.eye(inputs).unsqueeze(0)
    rounded = round_by_second_moments(layer, moments)
    step = layer.qparams().scale.detach().view(-1, 1)
    expected = (layer.layer.weight / step).round().clamp(-7, 7) * step
    torch.testing.assert_close(rounded, expected.detach())


@pytest.mark.parametrize("name", LAYERS)
def test_a_corrected_bias_gives_the_mean_output_of_float_weights(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = QuantizedLayer(build(), symmetric_range(2), symmetric=True)
    x = torch.randn(shape).abs()
    dims = [d for d in range(x.dim()) if d != (x.dim() - 1 if "linear" in name else 1)]
    with torch.no_grad():
        before = layer(x)
        step = layer.qparams().scale.view(-1, *[1] * (layer.layer.weight.dim() - 1))
        layer.layer.weight.copy_((layer.layer.weight / step).round() * step)
        assert float((layer(x) - before).mean(dims).abs().max()) > 1e-2
        correct_bias(layer, before, layer(x))
        torch.testing.assert_close(layer(x).mean(dims), before.mean(dims), rtol=0, atol=1e-5)
