"""Learning the generator from the classifier alone (ZS-CGAN, Choi et al., ICIP 2021).

`L_G = cross_entropy(teacher(G(z, y)), y) + batch_norm_weight * distance(batch, stored statistics)
- diversity_weight * log_pair_distance(features)`

The last term is not in the paper. Without it the images of a class come out nearly alike, since one
image of each class satisfies the others. Of a classifier of several labels the cross entropy is the
binary one, summed over the labels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zscgan_ext import distributed
from zscgan_ext.config.configs import GeneratorConfig
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import ConditionalGenerator, stride_of_classes
from zscgan_ext.training.execution import Execution
from zscgan_ext.training.trainer import ParameterGroup, Trainer

SMALLEST_DISTANCE = 1e-4  # that still counts, relative to the variance
SMALLEST_VARIANCE = 1e-12


def paired(labels: Tensor) -> Tensor:
    """Give every second image of a batch the label of the one before it.

    Args:
        labels: [B], or [B, num_classes].
    """
    return labels[::2].repeat_interleave(2, dim=0)[: len(labels)]


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
    _, variances, _ = distributed.combined_statistics(
        [mean], [variance], [torch.zeros_like(mean)], len(features)
    )
    return variances[0].sum()


class GeneratorTrainer(Trainer):
    """Learns a generator from a classifier.

    Args:
        generator: on the device of the teacher.
        teacher: the classifier to satisfy.
        config: batch size, steps, learning rate, weights of the loss.
        execution: how steps are executed, on the same device.
        rng: draws latent vectors and labels; on the same device.
        steps: how many there are in all, if not `config.steps`.
        learning_rate: at the start, if not `config.learning_rate`.
    """

    # The distance is the geometric mean over the pairs, relative to the variance; of images of one
    # class where diversity has a weight, otherwise of images with labels of their own. Accuracy is
    # the percentage of images that the teacher takes for their label, or of the labels of all
    # images that it gives as wanted.
    metrics = (
        *("loss", "cross_entropy", "batch_norm_distance", "pair_distance", "teacher_accuracy"),
    )
    shown = ("loss", "teacher_accuracy")
    rate_option = "synthesis_learning_rate"

    def __init__(
        self,
        generator: ConditionalGenerator,
        teacher: FrozenTeacher,
        config: GeneratorConfig,
        execution: Execution,
        rng: torch.Generator,
        *,
        steps: int | None = None,
        learning_rate: float | None = None,
    ) -> None:
        self.generator = generator
        self.teacher = teacher
        self.config = config
        self.rng = rng
        rate = config.learning_rate if learning_rate is None else learning_rate
        super().__init__(
            [ParameterGroup(list(generator.parameters()), rate)],
            (0.5, 0.999),
            config.steps if steps is None else steps,
            execution,
        )

    def models(self) -> dict[str, nn.Module]:
        """Return the models that take part in a step."""
        return {"generator": self.generator, "classifier": self.teacher}

    def sample(self) -> tuple[Tensor, ...]:
        """Draw latent vectors [B, latent_dim] and labels of more classes as learning goes."""
        batch = self.config.batch_size * distributed.world_size()
        images, in_all = batch * self.steps_taken, batch * self.steps
        stride = stride_of_classes(self.generator.num_classes, images, in_all)
        self.generator.get_buffer("class_stride").clamp_(max=stride)
        latent, labels = self.generator.random_inputs(self.config.batch_size, self.rng)
        return latent, paired(labels) if self.config.diversity_weight else labels

    def step(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Learn from a batch, with batch norm that takes the statistics of the batch."""
        self.generator.train()
        return super().step(batch)

    def loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the values of `metrics` [5]."""
        latent, labels = batch
        with self.precision.autocast():
            images = to_memory_format(self.generator(latent, labels), self.execution.memory_format)
            logits, distance, features = self.teacher.forward_with_batch_norm_loss(images)
        head = self.generator.head
        cross_entropy = head.label_loss(logits, labels)
        difference = log_pair_distance(features)
        config = self.config
        loss = (
            config.cross_entropy_weight * cross_entropy
            + config.batch_norm_weight * distance
            - config.diversity_weight * difference
        )
        accuracy = (head.chosen(logits) == labels).float().mean() * 100
        values = (loss, cross_entropy, distance, difference.exp(), accuracy)
        return loss, torch.stack([value.detach() for value in values])


def synthetic_batches(
    generator: ConditionalGenerator,
    batch_size: int,
    rng: torch.Generator,
    memory_format: torch.memory_format = torch.channels_last,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield generated images [B, C, H, W] and the labels [B] they were made for, forever.

    The generator is in evaluation mode for them, also where it learns between two batches.
    """
    while True:
        generator.eval()
        latent, labels = generator.random_inputs(batch_size, rng)
        with torch.no_grad():
            images = to_memory_format(generator(latent, labels), memory_format)
        yield images, labels


def noise_batches(
    batch_size: int, shape: tuple[int, int, int], rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield standard normal noise [B, C, H, W], which depends on no data, forever."""
    while True:
        images = torch.randn((batch_size, *shape), generator=rng, device=rng.device)
        yield images, torch.zeros(batch_size, dtype=torch.int64, device=rng.device)
