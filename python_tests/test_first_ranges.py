"""The ranges that fine-tuning starts from, which the divergence of the logits chooses."""

import copy

import pytest
import torch
from networks import RGB8
from torch import nn

from zscgan_ext.quantization.calibration import RANGES, calibrate, choose_initial_ranges, least
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme

COUNT, TEMPERATURE = 2, 3.0


def classifier():
    """Two convolutions with batch norm, which ReLU6 and ReLU follow."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(32, *RGB8.shape))
    return model.eval().requires_grad_(False)


def batches(power, count=3):
    """Images of some contrast; they end, so that nobody can take too many."""
    torch.manual_seed(2)
    for _ in range(count):
        yield power * torch.randn(8, *RGB8.shape), torch.zeros(8, dtype=torch.int64)


def divergence(student, model, images, temperature):
    """The divergence in float64, written out."""
    ours, theirs = (net(images).double() / temperature for net in (student, model))
    probabilities = theirs.softmax(1)
    terms = probabilities * (probabilities.log() - ours.softmax(1).log())
    return temperature**2 * terms.sum(1).mean().item()


@pytest.mark.parametrize("scheme", ["paper", "deploy"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("power", [0.1, 1, 30])
def test_the_student_is_that_of_least_divergence(scheme, bits, power):
    model = classifier()
    student = convert(model, Scheme(scheme, bits, bits), RGB8.shape)
    alone = {}
    for ranges in RANGES:
        alone[ranges] = copy.deepcopy(student)
        calibrate(alone[ranges], batches(power), COUNT, ranges, model)
    found = choose_initial_ranges(student, model, batches(power), COUNT, TEMPERATURE)
    images = list(batches(power))[1][0]  # of the last of two batches
    expected = {name: divergence(own, model, images, TEMPERATURE) for name, own in alone.items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    chosen = alone[least(found)].state_dict()
    assert all(torch.equal(own, chosen[name]) for name, own in student.state_dict().items())
    assert torch.equal(student(images), alone[least(found)](images))


def test_different_images_choose_different_ranges():
    """Otherwise the test before could not tell a choice from a habit."""
    model = classifier()

    def chosen(bits, power):
        student = convert(model, Scheme("paper", bits, bits), RGB8.shape)
        return least(choose_initial_ranges(student, model, batches(power), COUNT, TEMPERATURE))

    assert len({chosen(bits, power) for bits in (2, 3, 4) for power in (0.1, 1, 30)}) > 1


def test_the_classifier_stays_as_it_is():
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    student = convert(model, Scheme("paper", 4, 4), RGB8.shape)
    choose_initial_ranges(student, model, batches(1), COUNT, TEMPERATURE)
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_divergences_that_are_alike_choose_the_first():
    assert least({"narrower": 1.0, "batch_norm": 1.0, "images": 1.0}) == "narrower"
    assert least({"narrower": 1.0, "batch_norm": 0.76, "images": 1.0}) == "narrower"
    assert least({"narrower": 1.0, "batch_norm": 0.74, "images": 1.0}) == "batch_norm"
    assert least({"narrower": 1.0, "batch_norm": 0.74, "images": 0.73}) == "images"
    assert least({"narrower": 0.0, "batch_norm": 0.0, "images": 1.0}) == "narrower"
