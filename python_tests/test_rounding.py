"""Rounding whose errors cancel, and ranges from batch norm: neither looks at an image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import RGB8, normal_batches, small_residual
from torch import nn

from zscgan_ext.quantization.activation_ranges import choose_range
from zscgan_ext.quantization.batch_norm_ranges import calibrate_from_batch_norm
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.quantizers import ActivationQuantizer
from zscgan_ext.quantization.scheme import QuantRange, Scheme
from zscgan_ext.quantization.squant import round_weights, squant_round

SCHEMES = [Scheme(name, bits, bits) for name in ("paper", "deploy") for bits in (2, 4, 8)]


def rounded(steps: list[list[list[float]]]) -> list[list[list[float]]]:
    tensor = torch.tensor(steps, dtype=torch.float64)
    return squant_round(tensor, -7, 7).tolist()


def test_the_errors_of_a_kernel_cancel():
    # To nearest: 1 1 1 0, errors -0.4 -0.4 -0.3 +0.3, which the largest brings from -0.8 to 0.2.
    assert rounded([[[1.4, 1.45, 1.3, -0.3]]]) == [[[1, 2, 1, 0]]]
    # Errors of 0.4 to 0.46 add up to 2.15: two of five are rounded down, the largest ones.
    assert rounded([[[0.6, 0.55, 0.58, 0.54, 0.58]]]) == [[[1, 0, 1, 0, 1]]]


def test_then_those_of_a_channel_cancel():
    # Kernels of one element leave the first stage as they are; their errors add up to 1.2.
    assert rounded([[[0.6], [0.7], [0.65], [2.85]]]) == [[[0], [1], [1], [3]]]
    # Every channel counts for itself.
    assert rounded([[[0.6], [0.65]], [[0.4], [0.3]]]) == [[[0], [1]], [[1], [0]]]


def test_a_channel_takes_back_what_a_kernel_moved():
    # The kernels err by 0.60, 0.58 and 0.56 less than nothing to nearest, by 0.40, 0.42 and 0.44
    # with their largest elements moved; together by 1.26, which moving the last one back mends.
    kernels = [[0.35, 0.25], [0.32, 0.26], [0.31, 0.25]]
    assert rounded([kernels]) == [[[1, 0], [1, 0], [0, 0]]]


def test_others_make_up_for_what_is_clipped():
    # Clipping loses 0.8, and rounding to nearest 0.5; the element with 0.4 of it is rounded up.
    assert rounded([[[7.8, 1.4, 2.1, 3.0]]]) == [[[7, 2, 2, 3]]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_sums_are_small_and_elements_near(outputs, inputs, elements, seed):
    random = torch.Generator().manual_seed(seed)
    shape = (outputs, inputs, elements)
    steps = 15 * torch.rand(shape, generator=random, dtype=torch.float64)
    integers = squant_round(steps, 0, 15)
    errors = integers - steps
    assert torch.equal(integers, integers.round())
    assert 0 <= integers.min() <= integers.max() <= 15
    assert errors.abs().max() < 1
    assert errors.sum((1, 2)).abs().max() <= 0.5 + 1e-9
    kernels = errors.sum(2).abs()
    assert kernels.max() < 1 + 1e-9
    # To reach a sum of 0.5 at most, no more kernels than their number halves are needed.
    assert ((kernels > 0.5 + 1e-9).sum(1) <= inputs / 2).all()


def test_nothing_moves_that_may_not():
    random = torch.Generator().manual_seed(0)
    steps = 15 * torch.rand(4, 5, 9, generator=random, dtype=torch.float64)
    movable = torch.rand(steps.shape, generator=random) < 0.5
    integers = squant_round(steps, 0, 15, movable)
    assert torch.equal(integers[~movable], steps[~movable].round())
    assert not torch.equal(integers[movable], steps[movable].round())


def weights_of(student):
    return [layer.layer.weight.detach().clone() for layer in student.layers]


def sum_errors(student, before):
    """Return the largest sum of errors over an output channel, in steps of its grid."""
    largest = 0.0
    for layer, weight in zip(student.layers, before, strict=True):
        error = (layer.layer.weight - weight).double().flatten(1).sum(1)
        largest = max(largest, (error / layer.qparams().scale).abs().max().item())
    return largest


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.weight_bits}")
def test_quantizers_reproduce_the_rounded_weights(scheme):
    student = convert(small_residual(), scheme, RGB8.shape)
    before, scales = weights_of(student), [layer.qparams().scale for layer in student.layers]
    round_weights(student)
    quantized = student.quantize_weights()
    for layer, own, weight, scale in zip(student.layers, quantized, before, scales, strict=True):
        after = layer.layer.weight
        torch.testing.assert_close(layer.qparams().scale, scale, rtol=1e-6, atol=0)
        torch.testing.assert_close(own, after, rtol=1e-5, atol=1e-7)
        per_channel = scale.view(-1, *[1] * (weight.dim() - 1))
        low, high = layer.quant_range.quant_min, layer.quant_range.quant_max
        zero_point = layer.zero_point.view(per_channel.shape)
        clipped = weight.clamp((low - zero_point) * per_channel, (high - zero_point) * per_channel)
        assert ((after - clipped).abs() < 1.0001 * per_channel).all()


def test_sums_are_smaller_than_those_of_rounding_to_nearest():
    scheme = Scheme("paper", 4, 4)
    student = convert(small_residual(), scheme, RGB8.shape)
    before = weights_of(student)
    round_weights(student)
    nearest = convert(small_residual(), scheme, RGB8.shape)
    for layer, quantized in zip(nearest.layers, nearest.quantize_weights(), strict=True):
        layer.layer.weight.data = quantized.detach()
    # Little more than 0.5, because the two weights that keep the range cannot move.
    assert sum_errors(student, before) <= 0.6
    assert sum_errors(nearest, before) > 1.5


def range_of(quantizer):
    """Return the smallest and the largest value that a quantizer gives."""
    scale, zero_point = quantizer.log_scale.exp().item(), quantizer.zero_point.item()
    low, high = quantizer.quant_range.quant_min, quantizer.quant_range.quant_max
    return scale * (low - zero_point), scale * (high - zero_point)


def test_a_range_clips_the_more_the_fewer_integers_there_are():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).relu()
    highest = {}
    for bits in (2, 4, 8):
        quantizer = ActivationQuantizer(QuantRange(0, 2**bits - 1))
        choose_range(quantizer, values)
        low, highest[bits] = range_of(quantizer)
        assert low == 0
    assert highest[2] < highest[4] < highest[8] <= 1.001 * values.max().item()
    # The best step of a half-normal distribution for three integers above zero, found by search.
    grid = torch.linspace(0.3, 1.2, 901)[:, None]
    errors = ((values / grid).round().clamp(0, 3) * grid - values).square().mean(1)
    assert highest[2] / 3 == pytest.approx(grid[errors.argmin()].item(), rel=0.1)


def normalized(gamma: float, beta: float, *behind: nn.Module) -> nn.Module:
    """One convolution, whose batch norm has this weight and bias, and layers behind it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *behind, nn.Conv2d(4, 4, 1))
    model[1].weight.data.fill_(gamma)
    model[1].bias.data.fill_(beta)
    return model.eval().requires_grad_(False)


def ranges_from_batch_norm(model, scheme):
    student = convert(model, scheme, RGB8.shape)
    calibrate_from_batch_norm(student, model, RGB8, torch.Generator().manual_seed(0))
    assert all(quantizer.enabled for quantizer in student.activation_quantizers)
    return [range_of(quantizer) for quantizer in student.activation_quantizers]


def test_ranges_follow_gamma_and_beta():
    scheme = Scheme("paper", 8, 8)
    ((low, high),) = ranges_from_batch_norm(normalized(1, 0, nn.ReLU()), scheme)
    assert low == 0
    assert 3 < high < 8
    ((_, wider),) = ranges_from_batch_norm(normalized(3, 0, nn.ReLU()), scheme)
    assert wider == pytest.approx(3 * high, rel=1e-5)
    ((_, moved),) = ranges_from_batch_norm(normalized(1, 2, nn.ReLU()), scheme)
    assert moved == pytest.approx(high + 2, rel=0.1)
    ((_, six),) = ranges_from_batch_norm(normalized(3, 0, nn.ReLU6()), scheme)
    assert six == pytest.approx(6, rel=0.05)


def test_the_input_ranges_over_all_pixels_and_folded_norms_over_their_draws():
    images, folded = ranges_from_batch_norm(normalized(2, 1), Scheme("deploy", 8, 8))
    # Green is darkest at -2, red brightest at 3; the zero point is rounded to an integer.
    assert images == pytest.approx(((0 - 0.5) / 0.25, (1 - 0.4) / 0.2), abs=5 / 255)
    assert folded[0] < 1 - 3 * 2
    assert folded[1] > 1 + 3 * 2


@pytest.mark.parametrize("name", ["paper", "deploy"])
def test_every_kind_of_tensor_gets_a_range_without_an_image(name):
    model = small_residual()
    student = convert(model, Scheme(name, 8, 8), RGB8.shape)
    calibrate_from_batch_norm(student, model, RGB8, torch.Generator().manual_seed(0))
    assert all(quantizer.running_min.isfinite() for quantizer in student.activation_quantizers)
    ((images, _),) = normal_batches(1, 64, *RGB8.shape)
    with torch.no_grad():
        expected, given_logits = model(images), student(images)
    assert (given_logits - expected).norm() < 0.1 * expected.norm()
