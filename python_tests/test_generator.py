"""The conditional generator: shapes, pixels, and that the class matters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.synthesis.generator import (
    FEWEST_CLASSES,
    IMAGES_PER_CLASS,
    ConditionalGenerator,
    stride_of_classes,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def generator_for(channels=3, size=28, num_classes=7, latent_dim=16):
    torch.manual_seed(0)
    preprocessing = Preprocessing(channels, size, MEAN[:channels], STD[:channels])
    return ConditionalGenerator(num_classes, latent_dim, preprocessing)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 30, 32, 33, 64, 65, 96, 224])
def test_images_have_the_classifiers_shape(channels, size):
    generator = generator_for(channels, size)
    images = generator(*generator.random_inputs(2, random()))
    assert images.shape == (2, channels, size, size)
    assert images.dtype == torch.float32
    assert images.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_pixels_lie_between_black_and_white(training):
    generator = generator_for().train(training)
    for parameter in generator.parameters():  # far from its start
        parameter.data.mul_(5)
    images = generator(*generator.random_inputs(16, random()))
    std, mean = torch.tensor(STD).view(-1, 1, 1), torch.tensor(MEAN).view(-1, 1, 1)
    pixels = images * std + mean
    assert pixels.amin() >= -1e-6
    assert pixels.amax() <= 1 + 1e-6
    assert pixels.std() > 0.05


def generate(generator, latent, labels, seed=0):
    """Images with the noise of a seed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return generator(latent, labels)


def test_class_latent_vector_and_noise_matter():
    generator = generator_for().eval()
    latent, _ = generator.random_inputs(2, random())
    same, other = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    images = generate(generator, latent, same)
    assert torch.equal(generate(generator, latent, same), images)
    assert (generate(generator, latent, other) - images).abs().mean() > 1e-3
    assert (generate(generator, latent + 1, same) - images).abs().mean() > 1e-3
    assert (generate(generator, latent, same, seed=1) - images).abs().mean() > 1e-3


def test_every_parameter_gets_a_gradient():
    generator = generator_for()
    images = generator(*generator.random_inputs(32, random()))
    (images * torch.linspace(-1, 1, images.numel()).view_as(images)).sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    # A bias in front of a batch norm has none but rounding errors.
    assert generator.embedding.weight.grad.abs().sum() > 0


def test_random_inputs_are_normal_and_uniform_and_repeatable():
    generator = generator_for(num_classes=4)
    latent, labels = generator.random_inputs(4000, random(1))
    assert latent.shape == (4000, 16)
    assert latent.mean().abs() < 0.02
    assert latent.std().item() == pytest.approx(1, abs=0.02)
    assert labels.dtype == torch.int64
    assert labels.bincount(minlength=4).float().div(1000).sub(1).abs().max() < 0.15
    again = generator.random_inputs(4000, random(1))
    assert torch.equal(latent, again[0])
    assert torch.equal(labels, again[1])
    assert not torch.equal(labels, generator.random_inputs(4000, random(2))[1])


@pytest.mark.parametrize(
    ("classes", "images", "in_all", "stride"),
    [
        (10, 0, 0, 1),
        (FEWEST_CLASSES, 0, 0, 1),
        (FEWEST_CLASSES + 1, 0, 10**6, 2),
        (1000, 0, 9600, 32),
        (1000, 3199, 9600, 32),
        (1000, 3200, 9600, 16),
        (1000, 9500, 9500, 16),
        (1000, 10**6, 1_280_000, 1),
    ],
)
def test_stride_of_classes(classes, images, in_all, stride):
    assert stride_of_classes(classes, images, in_all) == stride


@given(classes=st.integers(1, 3000), steps=st.integers(0, 400), batch=st.integers(1, 2000))
def test_every_class_that_joins_gets_its_images(classes, steps, batch):
    in_all = steps * batch
    share, present, previous = 0.0, set(), set()  # images of a class that joined last
    for images in range(0, in_all + 1, batch):
        present = set(range(0, classes, stride_of_classes(classes, images, in_all)))
        assert previous <= present
        if previous and present != previous:
            # They joined after a whole batch, which may have come a little late.
            assert share + batch / len(previous) >= IMAGES_PER_CLASS
            share = 0.0
        share += batch / len(present)
        previous = present
    assert len(present) <= FEWEST_CLASSES or share + batch / len(present) >= IMAGES_PER_CLASS


def test_only_classes_that_are_learned_are_drawn():
    generator = generator_for(num_classes=100)
    assert generator.learned_classes() == list(range(0, 100, 4))
    _, labels = generator.random_inputs(2000, random())
    assert sorted(set(labels.tolist())) == generator.learned_classes()
    generator.get_buffer("class_stride").fill_(1)
    _, all_labels = generator.random_inputs(2000, random())
    assert torch.equal(all_labels - all_labels % 4, labels)
    assert len(set(all_labels.tolist())) == 100


def test_learned_classes_are_saved_with_the_generator():
    generator, other = generator_for(num_classes=100), generator_for(num_classes=100)
    generator.get_buffer("class_stride").fill_(2)
    other.load_state_dict(generator.state_dict())
    assert other.learned_classes() == list(range(0, 100, 2))
