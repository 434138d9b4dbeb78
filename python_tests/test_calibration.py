"""Ranges of activations from batches of images."""

import pytest
import torch
from networks import RGB8, normal_batches, small_residual
from torch import nn

from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.activation_ranges import choose_range
from zscgan_ext.quantization.calibration import calibrate, cover_input
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.quantizers import ActivationQuantizer
from zscgan_ext.quantization.scheme import Scheme, unsigned_range


def identity_student(bits=8):
    """A student whose first quantizer sees its images and whose second sees them rectified."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1))
    nn.init.ones_(model[0].weight)
    return convert(model, Scheme("deploy", bits, bits), (1, 2, 2))


def images_of(*values: float):
    return torch.tensor(values).view(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)


BATCHES = [images_of(-1.0, 2.0, 0.0, 1.0), images_of(-3.0, 4.0, 0.5, 1.0)]


def test_ranges_are_the_mean_of_the_batches():
    student = identity_student()
    calibrate(student, iter(BATCHES), 2)
    of_images, of_relu = student.activation_quantizers
    assert (of_images.running_min.item(), of_images.running_max.item()) == (-2.0, 3.0)
    assert of_images.zero_point.item() == round(2 / (5 / 255))
    assert (of_relu.running_min.item(), of_relu.running_max.item()) == pytest.approx((0, 3))
    assert of_relu.zero_point.item() == 0


@pytest.mark.parametrize("ranges", ["images", "narrower", "batch_norm"])
def test_the_input_covers_all_pixels_whatever_generated_images_show(ranges):
    model = small_residual().eval()
    preprocessing = Preprocessing(3, 8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    student = convert(model, Scheme("deploy", 4, 4), preprocessing.shape)
    dim = iter([(0.1 * images, labels) for images, labels in normal_batches(2, 8, *RGB8.shape)])
    calibrate(student, dim, 2, ranges, model, preprocessing.input_range())
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = preprocessing.normalize(pixels)
    quantizer = student.activation_quantizers[0]
    step = quantizer.log_scale.exp().item()
    assert (quantizer(images) - images).abs().max() <= 0.501 * step
    assert step == pytest.approx((images.max() - images.min()).item() / 255)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.5, 0.25), (0.1, 1.0), (0.286, 0.353)])
@pytest.mark.parametrize("scheme", ["deploy", "symmetric"])
@pytest.mark.parametrize("again", [1, 2])
def test_rounding_of_pixels_hangs_on_no_last_bit(mean, std, scheme, again):
    preprocessing = Preprocessing(3, 8, (mean,) * 3, (std,) * 3)
    student = convert(small_residual().eval(), Scheme(scheme, 8, 8), preprocessing.shape)
    for _ in range(again):
        cover_input(student, preprocessing.input_range())
    student.quantize_activations()
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = preprocessing.normalize(pixels)
    quantizer = student.activation_quantizers[0]
    step = quantizer.log_scale.exp().item()
    farthest = max(mean, 1 - mean)  # from zero
    least = 1 / 255 if scheme == "deploy" else farthest / 127.5
    assert step == pytest.approx(least / std, rel=1 / 250)
    assert (quantizer(images) - images).abs().max() <= 0.501 * step
    nudge = 1e-3 * step
    assert torch.equal(quantizer(images - nudge), quantizer(images + nudge))


def test_an_assumed_normalization_leaves_room_on_both_sides():
    low, high = Preprocessing(1, 8, (0.5,), (0.25,)).input_range()
    assert (low, high) == (-2, 2)
    assert Preprocessing(1, 8, (0.5,), (0.25,), is_assumed=True).input_range() == (-4, 4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_is_that_of_least_squared_error(bits):
    x = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(bits)) * 2 + 1
    student = identity_student(bits)
    calibrate(student, iter([(x, torch.zeros(8))]), 1)
    quantizer = student.activation_quantizers[0]
    low, high, zero_point = 0, quantizer.quant_range.quant_max, int(quantizer.zero_point)
    largest = (x.max() - x.min()).item() / high

    def error(scale: float) -> float:
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
        return (rounded.double() - x).square().sum().item()

    least = min(error(largest * (1 - 0.03 * i)) for i in range(31))
    assert error(quantizer.log_scale.exp().item()) == pytest.approx(least, rel=1e-3)


def test_few_bits_clip_an_outlier_and_many_do_not():
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).abs()
    x[0, 0, 0, 0] = 8.0
    parts = []
    for bits in (8, 2):
        quantizer = ActivationQuantizer(unsigned_range(bits))
        choose_range(quantizer, x)
        parts.append(quantizer.log_scale.exp().item() * quantizer.quant_range.quant_max / 8)
    assert parts[0] > 0.6
    assert parts[1] < 0.4


def test_only_the_wanted_batches_are_taken():
    student = identity_student()
    batches = iter(BATCHES)
    calibrate(student, batches, 1)
    assert student.activation_quantizers[0].running_max.item() == 2.0
    assert next(batches) is BATCHES[1]


def test_a_second_calibration_forgets_the_first():
    student, fresh = identity_student(), identity_student()
    calibrate(student, normal_batches(2, 4, 1, 2, 2), 2)
    before = student.activation_quantizers[0].log_scale.item()
    calibrate(student, iter(BATCHES), 2)
    calibrate(fresh, iter(BATCHES), 2)
    assert student.activation_quantizers[0].log_scale.item() != before
    for one, other in zip(student.activation_quantizers, fresh.activation_quantizers, strict=True):
        assert torch.equal(one.log_scale, other.log_scale)
        assert torch.equal(one.zero_point, other.zero_point)


def test_activations_are_float_before_and_quantized_after():
    student = identity_student(bits=2)
    assert not any(quantizer.enabled for quantizer in student.activation_quantizers)
    calibrate(student, iter(BATCHES), 2)
    assert all(quantizer.enabled for quantizer in student.activation_quantizers)


def test_ranges_are_those_behind_quantized_weights():
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1))
    model[0].weight.data = torch.tensor([1.0, 0.2]).view(1, 1, 1, 2)
    student = convert(model, Scheme("paper", 2, 8), (1, 2, 2))
    calibrate(student, iter([images_of(3.0, 3.0, 3.0, 3.0)]), 1)
    # 2 bits from 0 to 1 have steps of 1/3: 0.2 becomes 1/3.
    assert student.activation_quantizers[0].running_max.item() == pytest.approx(4)


def test_noise_gives_other_ranges_than_data():
    scheme = Scheme("deploy", 4, 4)
    scales = []
    for spread in (1.0, 3.0):
        student = convert(small_residual(), scheme, RGB8.shape)
        batches = ((spread * x, y) for x, y in normal_batches(2, 8, *RGB8.shape))
        calibrate(student, batches, 2)
        scales.append(torch.cat([q.log_scale.detach() for q in student.activation_quantizers]))
    ratio = (scales[1] - scales[0]).exp()
    assert ratio[0].item() == pytest.approx(3, rel=1e-5)  # the images themselves
    assert (ratio > 1).sum() >= len(ratio) - 1  # ReLU6 may be full in both


# ---- beside batch norm ---------------------------------------------------------------------------


def normalized_student(bits=4):
    """A classifier of two activations, of which the second alone follows a batch norm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.ReLU()),
        *(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Conv2d(4, 4, 1),
    )
    model = model.eval().requires_grad_(False)
    return model, convert(model, Scheme("paper", bits, bits), RGB8.shape)


def scales_of(ranges, power=1.0, bits=4):
    """The scales of both activations, calibrated on images of some contrast."""
    model, student = normalized_student(bits)
    batches = [(power * images, labels) for images, labels in normal_batches(2, 8, *RGB8.shape)]
    calibrate(student, iter(batches), 2, ranges, model)
    assert all(quantizer.enabled for quantizer in student.activation_quantizers)
    return [quantizer.log_scale.exp().item() for quantizer in student.activation_quantizers]


def test_batch_norm_tells_ranges_where_there_is_one_and_images_do_elsewhere():
    assert scales_of("batch_norm", 10)[0] == scales_of("images", 10)[0]
    assert scales_of("batch_norm", 10)[1] == scales_of("batch_norm", 0.1)[1]
    assert scales_of("images", 10)[1] > 10 * scales_of("images", 0.1)[1]


def test_the_narrower_range_bounds_extremes_and_keeps_what_is_narrow():
    told = scales_of("batch_norm")[1]
    assert scales_of("narrower", 100)[1] == told
    assert scales_of("narrower", 0.1)[1] < 0.5 * told
    # What follows no batch norm has a range from images, whatever its size.
    assert scales_of("narrower", 100)[0] > 50 * scales_of("narrower", 1)[0]


@pytest.mark.parametrize("bits", [2, 3])
def test_beside_batch_norm_large_values_weigh_more(bits):
    # Narrow images, so that theirs are the ranges.
    assert scales_of("narrower", 0.1, bits)[1] > 1.1 * scales_of("images", 0.1, bits)[1]


def test_a_folded_layer_has_the_range_of_its_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)),
        *(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)),
        nn.Conv2d(4, 4, 1),
    )
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=1e-2)  # whose own results are next to nothing
    for layer in (model[1], model[3]):
        layer.momentum = None
    with torch.no_grad():
        for _ in range(3):
            model.train()(next(normal_batches(1, 64, *RGB8.shape))[0])
    model = model.eval().requires_grad_(False)
    student = convert(model, Scheme("deploy", 4, 4), RGB8.shape)
    calibrate(student, normal_batches(2, 8, *RGB8.shape), 2, "narrower", model)
    for folded in student.activation_quantizers[1:]:
        assert folded.log_scale.exp().item() * folded.quant_range.quant_max > 3
