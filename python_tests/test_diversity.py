"""Diversity of images: closed forms, and what a run tells of it."""

import math
from itertools import pairwise

import pytest
import torch
from networks import RGB8
from torch import nn

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.images.datasets import LabelledImages
from zscgan_ext.synthesis.diversity import (
    CLASSES,
    IMAGES,
    ClassImages,
    chosen_classes,
    compare_diversity,
    generated_classes,
    images_of_class,
    measure_diversity,
    near_duplicates,
    real_classes,
    relative_spread,
)
from zscgan_ext.synthesis.generator import ConditionalGenerator

CPU = torch.device("cpu")


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return ConditionalGenerator(5, 4, RGB8).eval()


def test_spread_of_a_worked_example():
    # Class means 0 and 4 lie 2 from their mean: 4 between. Within: 1 and 9.
    first, second = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [7.0]])
    assert relative_spread([first, second]) == [1 / 4, 9 / 4]


def test_spread_does_not_depend_on_the_unit_of_features():
    torch.manual_seed(0)
    classes = [torch.randn(6, 4).double() + shift for shift in range(3)]
    scaled = [1000 * each for each in classes]
    assert relative_spread(scaled) == pytest.approx(relative_spread(classes))


def test_equal_images_are_duplicates_and_noise_is_not():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    assert near_duplicates(images) == 0
    assert near_duplicates(images[[0, 0, 0, 1]]) == 0.5
    # Another brightness and contrast, hardly any noise: the same image.
    again = 3 * images + 2 + 0.01 * torch.randn_like(images)
    assert near_duplicates(torch.cat([images, again])) == 0.5


class FixedLogits(nn.Module):
    """Logits that are the first pixels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(4))

    def forward(self, images):
        return self.last(images.flatten(1)[:, :4])


def test_confidence_and_entropy_of_known_logits():
    undecided, decided = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    decided[:, 0, 0, 0] = 1000
    classes = iter([ClassImages(0, decided), ClassImages(3, undecided)])
    diversity = measure_diversity(FixedLogits(), classes)
    assert diversity.images == 4
    assert diversity.classes == [0, 3]
    assert diversity.mean_confidence == pytest.approx(100 * (1 + 1 / 4) / 2)
    assert diversity.mean_entropy == pytest.approx(math.log(4) / 2)
    assert diversity.confidence_histogram == [0, 0, 50, 0, 0, 0, 0, 0, 0, 50]
    assert diversity.spread == [0, 0]


def test_one_image_of_a_class_tells_nothing():
    one, two = torch.zeros(1, 1, 2, 2), torch.randn(2, 1, 2, 2)
    classes = [ClassImages(0, two), ClassImages(1, one), ClassImages(2, two + 5)]
    assert measure_diversity(FixedLogits(), iter(classes)).classes == [0, 2]
    assert measure_diversity(FixedLogits(), iter(classes[:2])) is None


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (20, 20), (1000, CLASSES)])
def test_chosen_classes_are_spread_evenly(count, expected):
    chosen = chosen_classes(range(count))
    assert len(set(chosen)) == len(chosen) == expected
    assert max(chosen) < count
    gaps = {later - earlier for earlier, later in pairwise(chosen)}
    assert len(gaps) == 1


def test_classes_are_chosen_among_those_given():
    assert chosen_classes([0, 8, 16]) == [0, 8, 16]
    assert chosen_classes(range(0, 1000, 25)) == list(range(0, 1000, 50))


def test_generated_images_are_the_same_again_and_disturb_nothing(generator):
    def images(label):
        return images_of_class(generator, label, 4, torch.Generator().manual_seed(3))

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = images(2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(images(2), first)
    assert not torch.equal(images(1), first)
    classes = list(generated_classes(generator, torch.Generator()))
    assert [each.label for each in classes] == [0, 1, 2, 3, 4]
    assert sum(len(each.images) for each in classes) == IMAGES


def test_real_images_of_a_class_are_its_own():
    pixels = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 8)
    data = LabelledImages(pixels.contiguous(), torch.tensor([0, 1, 0, 4, 1, 0]))
    classes = {each.label: each.images for each in real_classes(data, RGB8, range(5), CPU)}
    assert set(classes) == {0, 1}  # one image of class 4, none of 2 and 3
    torch.testing.assert_close(classes[0], RGB8.normalize(pixels[[0, 2, 5]]))
    torch.testing.assert_close(classes[1], RGB8.normalize(pixels[[1, 4]]))


def test_a_collapsed_generator_is_told_from_real_images(generator):
    """Images that are alike in each class have less spread than images that are not."""
    classifier = load_classifier("resnet20")
    random = torch.Generator().manual_seed(0)
    prototypes = torch.randn(10, 1, 28, 28, generator=random)
    alike = (
        ClassImages(i, each + 0.01 * torch.randn(20, 1, 28, 28, generator=random))
        for i, each in enumerate(prototypes)
    )
    different = (ClassImages(i, torch.randn(20, 1, 28, 28, generator=random)) for i in range(10))
    compared = compare_diversity(classifier.model, alike, different)
    assert max(compared["generated"]["spread"]) < 0.1 < 1 < min(compared["real"]["spread"])
    assert min(compared["generated"]["near_duplicates"]) == 95  # all but the first
    assert max(compared["real"]["near_duplicates"]) == 0
    assert compare_diversity(classifier.model, iter([]), None) == {"generated": None, "real": None}
