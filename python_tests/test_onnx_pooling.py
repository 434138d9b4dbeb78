"""Pooling of any window in ONNX Runtime against torch, in floats and on integers."""

import random

import pytest
import torch
from exported import calibrated, noise
from networks import as_trained
from torch import nn

from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.export.node_by_node import product_step
from zscgan_ext.export.onnx.model import float_model, quantized_model
from zscgan_ext.export.onnx.runtime import OnnxClassifier
from zscgan_ext.export.onnx.verification import compare_nodes
from zscgan_ext.images.preprocessing import Preprocessing


class Pooled(nn.Module):
    """A convolution, pooling of its channels, and a linear layer."""

    def __init__(self, pool, size):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pool, nn.Flatten(1))
        self.fc = nn.Linear(self.body(torch.zeros(1, 3, size, size)).shape[1], 5)

    def forward(self, images):
        return self.fc(self.body(images))


def window(choice):
    """Kernel, stride, padding and whether a last window may lie partly outside."""
    kernel = (choice.randint(1, 5), choice.randint(1, 5))
    return {
        "kernel_size": kernel,
        "stride": (choice.randint(1, 4), choice.randint(1, 4)),
        "padding": tuple(choice.randint(0, k // 2) for k in kernel),
        "ceil_mode": choice.random() < 0.7,
    }


def average_pool(choice):
    divisor = choice.choice([None, None, 3])
    counts = choice.random() < 0.5
    return nn.AvgPool2d(**window(choice), count_include_pad=counts, divisor_override=divisor)


def maximum_pool(choice):
    return nn.MaxPool2d(**window(choice), dilation=choice.randint(1, 2))


def power_average_pool(choice):
    options = window(choice)
    del options["padding"]
    return nn.LPPool2d(2, **options)


def adaptive_average_pool(choice):
    return nn.AdaptiveAvgPool2d((choice.randint(1, 15), choice.randint(1, 15)))


def adaptive_maximum_pool(choice):
    return nn.AdaptiveMaxPool2d((choice.randint(1, 15), choice.randint(1, 15)))


POOLS = (
    *(average_pool, maximum_pool, power_average_pool),
    *(adaptive_average_pool, adaptive_maximum_pool),
)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pool", POOLS)
def test_pooling_computes_what_torch_does(pool, seed):
    choice = random.Random(seed)
    torch.manual_seed(seed)
    size = choice.randint(9, 13)
    model = as_trained(Pooled(pool(choice), size))
    preprocessing = Preprocessing(3, size, (0.5,) * 3, (0.25,) * 3)
    classifier = Classifier("pooled", model, 5, preprocessing, ())
    session = OnnxClassifier(
        float_model(trace(model, classifier.preprocessing.shape), classifier).SerializeToString()
    )
    for images in noise(classifier, 3, 2):
        torch.testing.assert_close(session(images), model(images), rtol=1e-5, atol=1e-5)
    student = calibrated(classifier, "deploy", 8, 8)
    exported, grids = quantized_model(student, classifier)
    _, difference, _ = compare_nodes(student, exported, grids, noise(classifier, 8, 2))
    assert difference <= product_step(student)
