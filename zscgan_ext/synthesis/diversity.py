"""How diverse images are, as a classifier sees them: spread of features, confidence, duplicates."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zscgan_ext.classifiers.heads import SINGLE_LABEL, Head
from zscgan_ext.images.datasets import Images
from zscgan_ext.images.memory_format import to_channels_last
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.synthesis.generator import ConditionalGenerator, default_random_seeded
from zscgan_ext.synthesis.penultimate_features import penultimate_features

IMAGES = 500  # over all classes
CLASSES = 20  # at most, spread over all of them
CONFIDENCE_BINS = 10
DUPLICATE_CORRELATION = 0.95
IMAGES_AT_ONCE = 64  # whose pixels are compared in float64


@dataclass(frozen=True)
class ClassImages:
    """Images of one class, in the classifier's input units."""

    label: int
    images: Tensor  # [N, C, H, W]


@dataclass(frozen=True)
class Diversity:
    """What was measured of images of some classes.

    `spread` is, for each class, the mean squared distance of penultimate features to the mean of
    the class, in units of the mean squared distance of the classes' means to their own mean (the
    trace of the scatter within a class over that between classes; Fisher, 1936). A generator that
    makes the same image of a class again and again has a spread of zero.
    """

    images: int
    classes: list[int]
    spread: list[float]  # of each class
    near_duplicates: list[float]  # of each class, percent
    confidence_histogram: list[float]  # percent of images in bins of equal width from 0 to 1
    mean_confidence: float  # percent
    mean_entropy: float  # of the answers, nats


def chosen_classes(labels: Sequence[int]) -> list[int]:
    """Return at most `CLASSES` of these labels, spread evenly over them."""
    count = min(len(labels), CLASSES)
    return [labels[index * len(labels) // count] for index in range(count)]


@torch.no_grad()
def measure_diversity(
    model: nn.Module,
    classes: Iterator[ClassImages],
    batch_size: int = IMAGES,
    head: Head = SINGLE_LABEL,
) -> Diversity | None:
    """Measure images class by class.

    Args:
        model: the float classifier in evaluation mode, on the device of the images.
        classes: two images or more of each class; those with fewer are left out.
        batch_size: images that the model is asked about at once.
        head: what the logits mean.

    Returns:
        What was measured, None with fewer than two classes.
    """
    labels, features, logits, duplicates = [], [], [], []
    for each in classes:
        if len(each.images) < 2:
            continue
        answers = [penultimate_features(model, part) for part in each.images.split(batch_size)]
        labels.append(each.label)
        features.append(torch.cat([feature for _, feature in answers]).double())
        logits.append(torch.cat([answer for answer, _ in answers]).double())
        duplicates.append(100 * near_duplicates(each.images))
    if len(labels) < 2:
        return None
    answers_of_all = torch.cat(logits)  # [N, num_classes]
    confidence = head.confidence(answers_of_all)
    histogram = torch.histc(confidence.cpu(), CONFIDENCE_BINS, 0, 1) * (100 / len(confidence))
    return Diversity(
        len(confidence),
        labels,
        relative_spread(features),
        duplicates,
        histogram.tolist(),
        100 * float(confidence.mean()),
        float(head.entropy(answers_of_all).mean()),
    )


def relative_spread(features: Sequence[Tensor]) -> list[float]:
    """Return the scatter within each class over that between classes.

    Args:
        features: [N, F] of each class.
    """
    means = torch.stack([feature.mean(0) for feature in features])  # [classes, F]
    between = (means - means.mean(0)).square().sum(1).mean()
    within = [
        (feature - mean).square().sum(1).mean()
        for feature, mean in zip(features, means, strict=True)
    ]
    tiny = torch.finfo(between.dtype).tiny
    return [float(each / between.clamp(min=tiny)) for each in within]


def near_duplicates(images: Tensor) -> float:
    """Return the fraction of images that an earlier one repeats.

    An image repeats another if their pixels correlate to more than `DUPLICATE_CORRELATION`.

    Args:
        images: [N, C, H, W] of one class.
    """
    parts = images.flatten(1).split(IMAGES_AT_ONCE)  # [n, C * H * W] each
    repeats = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for index, part in enumerate(parts):
        start, unit = index * IMAGES_AT_ONCE, unit_rows(part)
        for other in range(index + 1):
            correlations = unit @ (unit if other == index else unit_rows(parts[other])).T
            earlier = correlations.tril(-1) if other == index else correlations
            found = (earlier > DUPLICATE_CORRELATION).any(1)
            repeats[start : start + len(part)] |= found
    return float(repeats.double().mean())


def unit_rows(pixels: Tensor) -> Tensor:
    """Return rows less their means, of length 1, float64."""
    wide = pixels.double()
    return torch.nn.functional.normalize(wide - wide.mean(1, keepdim=True), dim=1)


# ---- images to measure --------------------------------------------------------------------------


def generated_classes(
    generator: ConditionalGenerator, random: torch.Generator, batch_size: int = IMAGES
) -> Iterator[ClassImages]:
    """Yield generated images of some classes; torch's default generator is left as it was.

    Args:
        generator: in evaluation mode.
        random: draws latent vectors; on the generator's device.
        batch_size: images that are generated at once.
    """
    labels = chosen_classes(generator.learned_classes())
    for label in labels:
        images = images_of_class(generator, label, IMAGES // len(labels), random, batch_size)
        yield ClassImages(label, images)


@torch.no_grad()
def images_of_class(
    generator: ConditionalGenerator,
    label: int,
    count: int,
    random: torch.Generator,
    batch_size: int = IMAGES,
) -> Tensor:
    """Generate images [count, C, H, W] of one class, the same ones for the same random numbers.

    Of several labels it is the only one that is asked for.
    """
    latent, drawn = generator.random_inputs(count, random)
    with default_random_seeded(latent.device, random.initial_seed() + label):
        labels = drawn.new_full((count,), label)
        of_class = generator.head.only(labels, generator.num_classes)
        pairs = zip(latent.split(batch_size), of_class.split(batch_size), strict=True)
        return to_channels_last(torch.cat([generator(*pair) for pair in pairs]))


def real_classes(
    data: Images,
    preprocessing: Preprocessing,
    labels: Sequence[int],
    device: torch.device,
    head: Head = SINGLE_LABEL,
) -> Iterator[ClassImages]:
    """Yield the first images of these classes, or with these labels among others."""
    for label in labels:
        index = head.has(data.labels, label).nonzero().flatten()[: IMAGES // len(labels)]
        if len(index) > 1:
            images, _ = next(data.subset(index).batches(len(index), preprocessing))
            yield ClassImages(label, to_channels_last(images.to(device)))


def compare_diversity(
    model: nn.Module,
    generated: Iterator[ClassImages],
    real: Iterator[ClassImages] | None,
    batch_size: int = IMAGES,
    head: Head = SINGLE_LABEL,
) -> dict[str, Any]:
    """Return the entry of `metrics.json`: generated images, and real ones or None."""

    def measured(classes: Iterator[ClassImages] | None) -> dict[str, Any] | None:
        diversity = None if classes is None else measure_diversity(model, classes, batch_size, head)
        return None if diversity is None else asdict(diversity)

    return {"generated": measured(generated), "real": measured(real)}
