"""Learning the generator from the classifier alone (ZS-CGAN, Choi et al., ICIP 2021).

`L_G = cross_entropy(teacher(G(z, y)), y) + batch_norm_weight * distance(batch, stored statistics)
- diversity_weight * log_pair_distance(features)`

The last term is not in the paper. Without it the images of a class come out nearly alike, since one
image of each class satisfies the others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscgan_ext import processes
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.settings.config import Settings
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import ConditionalGenerator, stride_of_classes
from zscgan_ext.training.execution import choose_execution
from zscgan_ext.training.steps import Training, as_it_is, every_step, nothing

SMALLEST_DISTANCE = 1e-4  # that still counts, relative to the variance
SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class SynthesisStep:
    """What one step measured."""

    step: int  # 1 to synthesis_steps
    loss: float
    cross_entropy: float
    batch_norm_distance: float
    # Geometric mean over the pairs, relative to the variance; of images of one class where
    # diversity has a weight, otherwise of images with labels of their own.
    pair_distance: float
    teacher_accuracy: float  # percent of images that the teacher takes for their label


def paired(labels: Tensor) -> Tensor:
    """Give every second image of a batch the label of the one before it.

    Args:
        labels: [B].
    """
    return labels[::2].repeat_interleave(2)[: len(labels)]


def log_pair_distance(features: Tensor) -> Tensor:
    """Measure how different the two images of each pair are, as the classifier sees them.

    A generator that is asked for a distance of images with the same label and different latent
    vectors does not collapse to one image (mode seeking, Mao et al., CVPR 2019). The distance is
    that of features, relative to the variance of all, and its logarithm makes the gradient large
    where images are alike, and small where they are not.

    Args:
        features: [B, F] of a batch with `paired` labels; the variance is that of all processes.

    Returns:
        The mean logarithm of the pairs' squared distance, a scalar; zero without a pair.
    """
    features = features.float()
    pairs = features[: len(features) // 2 * 2].unflatten(0, (-1, 2))  # [B / 2, 2, F]
    if len(pairs) == 0:
        return features.new_zeros(())
    variance = total_variance(features.detach()).clamp(min=SMALLEST_VARIANCE)
    distances = (pairs[:, 0] - pairs[:, 1]).square().sum(1)  # [B / 2]
    logarithms: Tensor = (distances / variance + SMALLEST_DISTANCE).log()
    return logarithms.mean()


def total_variance(features: Tensor) -> Tensor:
    """Return the sum of the variances of features [B, F] of all processes, a scalar."""
    variance, mean = torch.var_mean(features, 0, correction=0)  # [F] each
    _, variances, _ = processes.combined_statistics(
        [mean], [variance], [torch.zeros_like(mean)], len(features)
    )
    return variances[0].sum()


class GeneratorTraining(Training):
    """Generator learning, step by step.

    Args:
        generator: on the device of the teacher; put in training mode.
        teacher: the classifier to satisfy.
        settings: synthesis_steps, batch_size, synthesis_learning_rate, cross_entropy_weight,
            batch_norm_weight, diversity_weight, and how to execute.
        random: draws latent vectors and labels; on the same device.
    """

    rate_setting = "synthesis_learning_rate"

    def __init__(
        self,
        generator: ConditionalGenerator,
        teacher: FrozenTeacher,
        settings: Settings,
        random: torch.Generator,
    ) -> None:
        self.generator = generator.train()
        self.teacher = teacher
        self.settings = settings
        self.random = random
        super().__init__(
            generator.parameters(),
            settings.synthesis_learning_rate,
            (0.5, 0.999),
            settings.synthesis_steps,
            choose_execution(settings, random.device),
        )

    def models(self) -> dict[str, nn.Module]:
        """Return the models that take part in a step."""
        return {"generator": self.generator, "classifier": self.teacher}

    def inputs(self) -> tuple[Tensor, ...]:
        """Draw latent vectors [B, latent_dim] and labels [B], of more classes as learning goes."""
        batch = self.settings.batch_size * processes.count()
        images, in_all = batch * self.steps_taken, batch * self.settings.synthesis_steps
        stride = stride_of_classes(self.generator.num_classes, images, in_all)
        self.generator.get_buffer("class_stride").clamp_(max=stride)
        latent, labels = self.generator.random_inputs(self.settings.batch_size, self.random)
        return latent, paired(labels) if self.settings.diversity_weight else labels

    def measure(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the values of a `SynthesisStep` [5]."""
        latent, labels = inputs
        with self.precision.autocast():
            images = to_memory_format(self.generator(latent, labels), self.execution.memory_format)
            logits, distance, features = self.teacher.match(images)
        cross_entropy = F.cross_entropy(logits.float(), labels)
        difference = log_pair_distance(features)
        settings = self.settings
        loss = (
            settings.cross_entropy_weight * cross_entropy
            + settings.batch_norm_weight * distance
            - settings.diversity_weight * difference
        )
        accuracy = (logits.argmax(1) == labels).float().mean() * 100
        values = (loss, cross_entropy, distance, difference.exp(), accuracy)
        return loss, torch.stack([value.detach() for value in values])


def train_generator(
    generator: ConditionalGenerator,
    teacher: FrozenTeacher,
    settings: Settings,
    random: torch.Generator,
    report: Callable[[SynthesisStep], None],
    is_due: Callable[[int], bool] = every_step,
    after_step: Callable[[], None] = nothing,
    before_steps: Callable[[Training], object] = as_it_is,
) -> None:
    """Train the generator in place, and leave it in evaluation mode.

    Args:
        generator: see `GeneratorTraining`, as for teacher, settings and random.
        teacher: the classifier to satisfy.
        settings: what is learned, and how.
        random: draws latent vectors and labels.
        report: called after each step that is due.
        is_due: tells, for the number of a step, whether to wait for what it measured.
        after_step: called after each step.
        before_steps: is handed the training, which it may put into a state to go on from.
    """
    training = GeneratorTraining(generator, teacher, settings, random)
    before_steps(training)

    def report_values(step: int, values: list[float]) -> None:
        report(SynthesisStep(step, *values))

    training.run(settings.synthesis_steps, report_values, is_due, after_step)
    generator.eval()


def synthetic_batches(
    generator: ConditionalGenerator,
    batch_size: int,
    random: torch.Generator,
    memory_format: torch.memory_format = torch.channels_last,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield generated images [B, C, H, W] and the labels [B] they were made for, forever."""
    while True:
        latent, labels = generator.random_inputs(batch_size, random)
        with torch.no_grad():
            images = to_memory_format(generator(latent, labels), memory_format)
        yield images, labels


def learning_batches(
    training: GeneratorTraining, batches: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a generator that takes one more step of its training before each.

    Args:
        training: of the generator that makes the batches.
        batches: images [B, C, H, W] and labels [B], made when they are asked for.
    """
    while True:
        training.generator.train()
        training.advance()
        training.generator.eval()
        yield next(batches)


def noise_batches(
    batch_size: int, shape: tuple[int, int, int], random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield standard normal noise [B, C, H, W], which knows nothing of any data, forever."""
    while True:
        images = torch.randn((batch_size, *shape), generator=random, device=random.device)
        yield images, torch.zeros(batch_size, dtype=torch.int64, device=random.device)
