"""Learning the generator from the classifier alone (ZS-CGAN, Choi et al., ICIP 2021).

`L_G = cross_entropy(teacher(G(z, y)), y) + batch_norm_weight * distance(batch, stored statistics)`
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zscgan_ext.batch_norm_matching import FrozenTeacher
from zscgan_ext.config import Settings
from zscgan_ext.generator import ConditionalGenerator
from zscgan_ext.memory_format import to_channels_last
from zscgan_ext.precision import Precision


@dataclass(frozen=True)
class SynthesisStep:
    """What one step measured."""

    step: int  # 1 to synthesis_steps
    loss: float
    cross_entropy: float
    batch_norm_distance: float
    teacher_accuracy: float  # percent of images that the teacher takes for their label


def train_generator(
    generator: ConditionalGenerator,
    teacher: FrozenTeacher,
    settings: Settings,
    random: torch.Generator,
    report: Callable[[SynthesisStep], None],
) -> None:
    """Train the generator in place.

    Args:
        generator: on the device of the teacher.
        teacher: the classifier to satisfy.
        settings: synthesis_steps, batch_size, synthesis_learning_rate (Adam's, at the start; it
            falls to zero along a cosine), cross_entropy_weight, batch_norm_weight, precision.
        random: draws latent vectors and labels; on the same device.
        report: called after each step.
    """
    precision = Precision(settings.precision, random.device)
    optimizer = torch.optim.Adam(
        generator.parameters(),
        lr=settings.synthesis_learning_rate,
        betas=(0.5, 0.999),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.synthesis_steps)
    generator.train()
    for step in range(1, settings.synthesis_steps + 1):
        latent, labels = generator.random_inputs(settings.batch_size, random)
        with precision.autocast():
            logits, distance = teacher.match(to_channels_last(generator(latent, labels)))
        cross_entropy = F.cross_entropy(logits.float(), labels)
        loss = settings.cross_entropy_weight * cross_entropy + settings.batch_norm_weight * distance
        precision.step(loss, optimizer)
        schedule.step()
        accuracy = (logits.argmax(1) == labels).float().mean() * 100
        values = torch.stack([loss.detach(), cross_entropy.detach(), distance.detach(), accuracy])
        report(SynthesisStep(step, *values.tolist()))
    generator.eval()


def synthetic_batches(
    generator: ConditionalGenerator, batch_size: int, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield generated images [B, C, H, W] and the labels [B] they were made for, forever."""
    while True:
        latent, labels = generator.random_inputs(batch_size, random)
        with torch.no_grad():
            images = to_channels_last(generator(latent, labels))
        yield images, labels


def mixed_batches(
    batches: Iterator[tuple[Tensor, Tensor]], random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blend each image with another of its batch (mixup, Zhang et al., 2018).

    A generated image leaves the teacher certain of its class. Between two of them lies what the
    student has to learn: where the teacher's answer changes.

    Args:
        batches: images [B, C, H, W] and labels [B].
        random: draws the weights, uniform from 0.5 to 1; on the device of the images.

    Yields:
        Blended images and the label of the heavier part.
    """
    for images, labels in batches:
        shape = (len(images), 1, 1, 1)
        weight = 1 - torch.rand(shape, generator=random, device=images.device) / 2
        blended = weight * images + (1 - weight) * images.roll(1, 0)
        yield to_channels_last(blended), labels


def noise_batches(
    batch_size: int, shape: tuple[int, int, int], random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield standard normal noise [B, C, H, W], which knows nothing of any data, forever."""
    while True:
        images = torch.randn((batch_size, *shape), generator=random, device=random.device)
        yield images, torch.zeros(batch_size, dtype=torch.int64, device=random.device)
