"""A generator's images in a number of one's own, as many of each class as of the others."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from zscgan_ext.classifiers.heads import MULTI_LABEL
from zscgan_ext.synthesis.generator import ConditionalGenerator, default_random_seeded

AT_ONCE = 64  # images
NUMBERS_AT_ONCE = AT_ONCE * 3 * 224 * 224
SEEDS = 2**62


def balanced_labels(classes: list[int], count: int) -> Tensor:
    """Return labels [count] in turn, classes as often as each other, give or take one.

    Fewer images than classes are of classes spread over all of them.
    """
    index = torch.arange(count)
    index = index * len(classes) // count if count < len(classes) else index % len(classes)
    return torch.tensor(classes)[index]


def wanted_labels(generator: ConditionalGenerator, count: int, rng: torch.Generator) -> Tensor:
    """Return the labels of images that a generator is asked for, on the CPU.

    They are balanced, or drawn where several may apply to an image.

    Args:
        generator: of the images.
        count: of the images.
        rng: on the CPU, which nothing else has drawn from.
    """
    if generator.head is MULTI_LABEL:
        return generator.random_labels(count, rng)
    return balanced_labels(generator.learned_classes(), count)


def generated_images(
    generator: ConditionalGenerator, count: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of normalized images [B, C, H, W] and `wanted_labels` on the CPU.

    Of one seed they are always the same, whatever else draws random numbers meanwhile.

    Args:
        generator: in evaluation mode, on any device.
        count: of the images in all.
        seed: of latent vectors and noise.
    """
    device = generator.embedding.weight.device
    rng = torch.Generator().manual_seed(seed)
    labels = wanted_labels(generator, count, rng)
    numbers = math.prod(generator.image_shape)
    at_once = max(1, min(AT_ONCE, NUMBERS_AT_ONCE // numbers))
    for part in labels.split(at_once):
        latent = torch.randn(len(part), generator.latent_dim, generator=rng).to(device)
        noise_seed = int(torch.randint(SEEDS, (), generator=rng))
        with default_random_seeded(device, noise_seed), torch.no_grad():
            images = generator(latent, part.to(device))
        yield images.cpu(), part


def to_pixels(generator: ConditionalGenerator, images: Tensor) -> Tensor:
    """Turn a generator's images [B, C, H, W] into pixels, uint8 of the same shape."""
    mean, std = (generator.get_buffer(name).to(images.device) for name in ("mean", "std"))
    return ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
