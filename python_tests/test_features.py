"""Feature maps of student and teacher in pairs, and the distance between them."""

import pytest
import torch
from networks import RGB8, as_trained, small_residual
from tensors import sample
from torch import Tensor, nn

from zscgan_ext.quantization.conversion import convert, folded
from zscgan_ext.quantization.feature_distillation import feature_distance, pair_features
from zscgan_ext.quantization.scheme import Scheme


def expected_distance(student, teacher):
    """The definition in float64."""
    pairs = [(s.double(), t.double()) for s, t in zip(student, teacher, strict=True)]
    return torch.stack([(s - t).square().sum() / t.square().sum() for s, t in pairs]).mean()


SHAPES = [(4, 3, 5, 5), (2, 6, 1, 1), (3, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_distance_is_its_definition(dtype):
    teacher = [sample(*shape, seed=i).to(dtype) for i, shape in enumerate(SHAPES)]
    student = [x + sample(*x.shape, seed=9).to(dtype) / 4 for x in teacher]
    distance = feature_distance(student, teacher)
    assert distance.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    expected = expected_distance(student, teacher).item()
    assert distance.item() == pytest.approx(expected, rel=tolerance)


def test_the_gradient_is_that_of_the_definition():
    teacher = [sample(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    student = [sample(*shape, seed=i + 5).requires_grad_() for i, shape in enumerate(SHAPES)]
    ours = torch.autograd.grad(feature_distance(student, teacher), student)
    theirs = torch.autograd.grad(expected_distance(student, teacher), student)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-7)


def test_a_teacher_of_zeros_gives_a_finite_distance():
    zeros = torch.zeros(2, 3, 4, 4)
    assert feature_distance([zeros], [zeros]).item() == 0
    assert feature_distance([zeros + 1e-20], [zeros]).isfinite()


def with_vectors():
    """A classifier with batch norm behind a linear layer, and no activation in between."""
    features = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    vectors = (nn.Linear(144, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    return as_trained(nn.Sequential(*features, *vectors))


@pytest.mark.parametrize("build", [small_residual, with_vectors])
@pytest.mark.parametrize("name", ["deploy", "paper"])
def test_pairs_are_equal_where_nothing_is_quantized(name, build):
    model = build()
    student = convert(model, Scheme(name, 8, 8), RGB8.shape)
    ours, theirs = pair_features(student, folded(model, RGB8.shape), wanted=True)
    images = sample(2, *RGB8.shape)
    (logits, features), (expected_logits, expected) = ours(images), theirs(images)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert len(features) == len(expected) == len(student.activation_quantizers) - (name == "deploy")
    for one, other in zip(features, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_features_there_are_logits_alone():
    model = small_residual()
    student = convert(model, Scheme("paper", 4, 4), RGB8.shape)
    _, theirs = pair_features(student, folded(model, RGB8.shape), wanted=False)
    logits, features = theirs(sample(2, *RGB8.shape))
    assert features == []
    torch.testing.assert_close(logits, folded(model, RGB8.shape)(sample(2, *RGB8.shape)))


class InPlace(nn.Module):
    """Two branches, the first of which is overwritten by their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
        self.last = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x), self.second(x)
        return self.last(first.add_(second)).flatten(1)


def test_a_tensor_that_the_classifier_overwrites_is_a_feature_too():
    model = InPlace().eval()
    student = convert(model, Scheme("deploy", 8, 8), (1, 2, 2))
    ours, theirs = pair_features(student, folded(model, (1, 2, 2)), wanted=True)
    images = sample(3, 1, 2, 2)
    with student.quantized_weights():
        _, features = ours(images)
    _, wanted = theirs(images)
    first = model.first(images)
    torch.testing.assert_close(wanted[0], first)  # as it was before it was overwritten
    assert len(features) == len(wanted) == 3
