"""Where quantizers stand around operators, and models built of them from end to end."""

import pytest
import torch
import torch.nn.functional as F
from exported import calibrated, noise, small_classifier
from networks import as_trained
from onnx_functions import focus
from torch import nn

from zscgan_ext.export.node_by_node import product_step
from zscgan_ext.export.onnx.model import quantized_model
from zscgan_ext.export.onnx.verification import compare_nodes
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme


class Between(nn.Module):
    """A function between a convolution and a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function
        self.fc = nn.Linear(self.features(torch.zeros(1, 3, 8, 8)).shape[1], 5)

    def features(self, images):
        return self.function(self.conv(images)).flatten(1)

    def forward(self, images):
        return self.fc(self.features(images))


def quantized_nodes(function):
    """The nodes of a function between two layers whose results are quantized."""
    model = as_trained(Between(function).eval())
    student = convert(model, Scheme("deploy", 8, 8), (3, 8, 8))
    return list(student.named_activation_quantizers())


@pytest.mark.parametrize(
    "activation",
    [
        *(lambda x: x.clamp(0, 6), lambda x: torch.clamp(x, min=-1), nn.SELU(), nn.CELU()),
        *(F.softplus, F.softsign, nn.Hardshrink(), nn.Threshold(0.1, 0), nn.LogSigmoid()),
    ],
)
def test_an_activation_is_quantized_with_the_layer_before_it(activation):
    quantized = quantized_nodes(activation)
    assert len(quantized) == 2  # the images are the other
    assert "conv" not in quantized


@pytest.mark.parametrize(
    "function",
    [
        *(lambda x: torch.max(x, 1)[0], lambda x: x.min(2).values, lambda x: x.amin((2, 3))),
        *(lambda x: x.flip(1), lambda x: x.repeat(1, 2, 1, 1), nn.PixelShuffle(2), nn.Unfold(3)),
        *(nn.AdaptiveMaxPool2d(3), lambda x: F.max_pool1d(x.flatten(2), 2), nn.CircularPad2d(1)),
        *(lambda x: x[:, [1, 0]], lambda x: torch.repeat_interleave(x, 2, 1)),
    ],
)
def test_what_takes_values_of_its_input_gets_no_quantizer(function):
    assert quantized_nodes(function) == ["images", "conv"]


@pytest.mark.parametrize(
    "function",
    [
        *(lambda x: torch.max(x, -x), lambda x: torch.std_mean(x, 1)[1]),
        *(lambda x: torch.cumsum(x, 1), lambda x: F.normalize(x)),
    ],
)
def test_what_computes_other_values_gets_one(function):
    assert len(quantized_nodes(function)) > 2


class Stem(nn.Module):
    """Some function of the images before the first convolution."""

    def __init__(self, function, channels):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, images):
        return self.fc(F.relu(self.conv(self.function(images))).mean((2, 3)))


STEMS = {
    "PixelUnshuffle": (nn.PixelUnshuffle(2), 12),
    "focus": (focus, 12),
    "channels in another order": (lambda x: x[:, [2, 1, 0]], 3),
    "standardized": (lambda x: (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 0.5, 3),
    "flipped": (lambda x: torch.cat([x, x.flip(3)], 1), 6),
    "circular": (nn.CircularPad2d(2), 3),
    "maxima": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), 3),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", STEMS)
def test_a_stem_of_it_is_exported(name, bits):
    torch.manual_seed(0)
    classifier = small_classifier(as_trained(Stem(*STEMS[name]).eval()))
    student = calibrated(classifier, "deploy", bits, bits)
    model, grids = quantized_model(student, classifier)
    _, difference, _ = compare_nodes(student, model, grids, noise(classifier, 8, 2))
    assert difference <= product_step(student)


def test_layers_of_three_dimensions_stay_as_they_are_in_any_memory_format():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3))
    laid_out = lay_out(model, torch.channels_last)
    assert laid_out is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert model[1].weight.is_contiguous()
