"""Logits on labelled images and what is counted on them."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.evaluate.comparison import compare
from zscgan_ext.evaluate.evaluation import EvaluationTarget, measure
from zscgan_ext.images.datasets import LabelledImages, open_images
from zscgan_ext.images.memory_format import to_channels_last
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.measures import (
    ClassResult,
    agreement,
    expected_calibration_error,
    per_class,
    predict,
    top1,
    top5,
)

CPU = torch.device("cpu")


def test_predict_gives_the_logits_of_every_image_in_order():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten()).eval()
    preprocessing = Preprocessing(2, 5, (0.1, 0.2), (0.3, 0.4))
    pixels = torch.randint(256, (7, 2, 5, 5), dtype=torch.uint8)
    data = LabelledImages(pixels, torch.zeros(7, dtype=torch.int64))
    logits = predict(model, data, preprocessing, 3, CPU)
    with torch.no_grad():
        expected = model(preprocessing.normalize(pixels))
    torch.testing.assert_close(logits, expected)
    assert not logits.requires_grad


def test_predict_returns_float32_from_a_half_model():
    class Half(nn.Module):
        def forward(self, x):
            return x.flatten(1).bfloat16()

    data = LabelledImages(torch.full((2, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(2))
    logits = predict(Half(), data, Preprocessing(1, 1, (0.0,), (1.0,)), 2, CPU)
    assert torch.equal(logits, torch.ones(2, 1))
    assert logits.dtype == torch.float32


@dataclass(frozen=True)
class Changing(LabelledImages):
    """Images that are others whenever they are read."""

    files: tuple[Path, ...] = ()

    def read(self, index, preprocessing):
        return torch.randn(len(index), *preprocessing.shape)


def test_both_classifiers_are_measured_on_the_same_images():
    """Files may be written anew meanwhile: each is read once, for all models."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 10)).eval()
    facts = "own", Preprocessing(2, 2, (0.0,) * 2, (1.0,) * 2), tuple("abcdefghij")
    images = torch.zeros(40, 2, 2, 2, dtype=torch.uint8)
    data = Changing(images, torch.zeros(40, dtype=torch.int64))
    target = EvaluationTarget(model, lambda images: model(images), *facts)
    evaluation = measure(target, data, 7)
    assert evaluation.agreement == 100
    assert evaluation.top1 == evaluation.float_top1
    data = replace(data, files=tuple(map(Path, map(str, range(40)))))
    assert compare(target, data, 7).agreement == 100


def test_percentages_of_a_worked_example():
    logits = torch.tensor(
        [
            [9.0, 8, 7, 6, 5, 4, 3],  # first of seven
            [9.0, 8, 7, 6, 5, 4, 3],  # fifth
            [9.0, 8, 7, 6, 5, 4, 3],  # sixth
            [3.0, 4, 5, 6, 7, 8, 9],  # first
        ]
    )
    labels = torch.tensor([0, 4, 5, 6])
    assert top1(logits, labels) == 50.0
    assert top5(logits, labels) == 75.0
    assert agreement(logits, logits[[0, 0, 3, 3]]) == 75.0


def test_top5_of_fewer_than_five_classes_is_all():
    assert top5(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])) == 100.0


def test_channels_last_is_unambiguous_for_one_channel():
    images = torch.randn(2, 1, 4, 6)
    copied = to_channels_last(images)
    assert copied.stride() == (24, 1, 6, 1)
    assert images.contiguous(memory_format=torch.channels_last).stride() == (24, 24, 6, 1)
    assert torch.equal(copied, images)
    assert to_channels_last(copied) is copied


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (0, 3, 4, 4)])
def test_channels_last_keeps_values(shape):
    images = torch.randn(shape)
    copied = to_channels_last(images)
    assert torch.equal(copied, images)
    assert copied.is_contiguous(memory_format=torch.channels_last)


def test_bundled_classifier_reaches_its_accuracy():
    classifier = load_classifier("resnet20")
    whole = open_images("fashion-mnist", "test", classifier.preprocessing)
    assert isinstance(whole, LabelledImages)
    data = LabelledImages(whole.images[:1000], whole.labels[:1000])
    logits = predict(classifier.model, data, classifier.preprocessing, 250, CPU)
    assert top1(logits, data.labels) > 91.0
    assert top5(logits, data.labels) > 99.0


def test_calibration_error_of_a_worked_example():
    # Confidence 0.9 three times, of which two are right, and 0.6 once, which is wrong.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 1, 1])
    expected = 100 * (3 / 4 * abs(0.9 - 2 / 3) + 1 / 4 * 0.6)
    assert expected_calibration_error(probabilities.log(), labels) == pytest.approx(expected)


def test_a_certain_and_right_classifier_is_calibrated():
    logits = 1000 * torch.eye(4)
    assert expected_calibration_error(logits, torch.arange(4)) == 0
    assert expected_calibration_error(logits, (torch.arange(4) + 1) % 4) == 100


def test_classes_of_a_worked_example():
    logits = torch.eye(4)[[0, 0, 1, 0, 2]]
    labels = torch.tensor([0, 0, 0, 1, 3])
    assert per_class(logits, labels) == [
        ClassResult(0, 3, pytest.approx(200 / 3), pytest.approx(200 / 3)),
        ClassResult(1, 1, 0.0, 0.0),
        ClassResult(3, 1, 0.0, None),
    ]
