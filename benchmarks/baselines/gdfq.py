"""The settings of GDFQ, for comparison (Xu et al., ECCV 2020, arXiv 2003.03603).

What is theirs: the generator and how the class enters it, both losses and their weights,
optimizers, learning rates and their steps, the warm-up of the generator alone, ranges that are a
moving average over its last batches and then frozen, and one batch of images for a step of the
generator and one of the student. The schedule has the length that this benchmark gives it; theirs
has 80,000 steps, and a warm-up of 800. Cut down in proportion, few steps would be left of the
warm-up, whose images are noise still: with 2 steps of 200 instead of 40, ranges were so wrong that
W4A4 of resnet20 fell from 89 to 60 %. So the warm-up is as long as generator learning is here. No
student takes part in it, and all widths and schemes share one. The student's learning rate falls
over the turns that it takes, which in theirs are all but one in a hundred steps. Other than theirs,
Adam starts anew after the warm-up, and gradients stop where an activation is clipped.
"""

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscgan_ext.classifiers.weights import load_weights
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.calibration import update_ranges
from zscgan_ext.quantization.quantized_classifier import (
    QuantizedClassifier,
    round_biases_to_int32,
)
from zscgan_ext.run_folder.whole_file import write_whole
from zscgan_ext.stages.monitor import Progress
from zscgan_ext.stages.run import Run
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher

LATENT_DIM = 100
BATCH_NORM_WEIGHT = 0.1
TEMPERATURE = 20
GENERATOR_LEARNING_RATE = 1e-3
STUDENT_LEARNING_RATE = 1e-4
RATE_STEPS = (1 / 4, 1 / 2, 3 / 4)  # of all steps, where learning rates fall to a tenth
MOVING_AVERAGE = 10  # batches that the one of ranges is about as long as
OBSERVED = 50  # batches; the first are forgotten by then


class GdfqGenerator(nn.Module):
    """GDFQ's generator for small images: the class embedding times the latent vector.

    Args:
        num_classes: classes of the classifier.
        preprocessing: image shape of the classifier. Images are in its input units, whose mean and
            variance the last batch norm sets to 0 and 1.
    """

    def __init__(self, num_classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.num_classes = num_classes
        _, self.image_size, _ = preprocessing.shape
        map_size = math.ceil(self.image_size / 4)
        self.embedding = nn.Embedding(num_classes, LATENT_DIM)
        self.linear = nn.Linear(LATENT_DIM, 128 * map_size**2)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (128, map_size, map_size)),
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128, eps=0.8),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64, eps=0.8),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, preprocessing.channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(preprocessing.channels, affine=False),
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Map latent vectors [N, LATENT_DIM] and labels [N] to images [N, C, H, W]."""
        images: Tensor = self.layers(self.linear(self.embedding(labels) * latent))
        return images[:, :, : self.image_size, : self.image_size]


def student_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy and distillation of logits [N, num_classes].

    The divergence is averaged over images and classes, as `KLDivLoss` does by default.
    """
    divergence = F.kl_div(
        F.log_softmax(logits / TEMPERATURE, dim=1),
        F.log_softmax(teacher_logits / TEMPERATURE, dim=1),
        log_target=True,
        reduction="none",
    )
    return F.cross_entropy(logits, labels) + TEMPERATURE**2 * divergence.mean()


class Batch(NamedTuple):
    """Generated images and what is known about them."""

    images: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]
    teacher_logits: Tensor  # [N, num_classes]


def learning_rate(initial: float, step: int, steps: int) -> float:
    """Divide a learning rate by ten for each quarter of the steps that is over before one."""
    over = sum(step > fraction * steps for fraction in RATE_STEPS)
    return float(initial * 0.1**over)


class GdfqGeneratorTraining:
    """The generator's part of the schedule.

    Args:
        run: classifier, settings and device.
        generator: learns in place.
        random: for latent vectors and labels.
    """

    def __init__(self, run: Run, generator: GdfqGenerator, random: torch.Generator) -> None:
        self.run = run
        self.generator = generator.to(run.device).to(memory_format=run.execution.memory_format)
        self.generator.train()
        self.random = random
        self.teacher = FrozenTeacher(run.classifier.model, "mse")
        self.steps = run.config.generator.steps + run.config.fine_tuning.steps
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), GENERATOR_LEARNING_RATE, (0.5, 0.999)
        )

    def images(self, size: int) -> tuple[Tensor, Tensor]:
        """Generate images [N, C, H, W] of random labels [N]."""
        device = self.run.device
        shape = (size, LATENT_DIM)
        latent = torch.randn(shape, generator=self.random, device=device)
        classes = self.generator.num_classes
        labels = torch.randint(classes, shape[:1], generator=self.random, device=device)
        images = self.generator(latent, labels)
        return to_memory_format(images, self.run.execution.memory_format), labels

    def step(self, step: int, size: int) -> tuple[Batch, float]:
        """Learn from a batch; return it, without gradients, and the loss."""
        self.optimizer.param_groups[0]["lr"] = learning_rate(
            GENERATOR_LEARNING_RATE, step, self.steps
        )
        images, labels = self.images(size)
        teacher_logits, distance, _ = self.teacher.forward_with_batch_norm_loss(images)
        loss = F.cross_entropy(teacher_logits, labels) + BATCH_NORM_WEIGHT * distance
        learn(loss, self.optimizer)
        return Batch(images.detach(), labels, teacher_logits.detach()), loss.item()


class GdfqStudentTraining:
    """The student's part of the schedule: its ranges first, then its weights.

    Args:
        student: not calibrated.
        turns: its steps.
    """

    def __init__(self, student: QuantizedClassifier, turns: int) -> None:
        self.student = student
        self.turns = turns
        self.observed_batches = 0
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(not name.endswith("log_scale"))  # ranges do not learn
        learned = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            learned, STUDENT_LEARNING_RATE, momentum=0.9, weight_decay=1e-4, nesterov=True
        )

    @torch.no_grad()
    def observe(self, batches: Iterable[Tensor]) -> None:
        """Move ranges towards those of batches [N, C, H, W], and quantize from then on."""
        for images in batches:
            self.observed_batches += 1
            update_ranges(self.student, images, 1 / min(self.observed_batches, MOVING_AVERAGE))
        self.student.quantize_activations()

    def step(self, turn: int, batch: Batch) -> None:
        """Learn from a batch."""
        self.optimizer.param_groups[0]["lr"] = learning_rate(
            STUDENT_LEARNING_RATE, turn, self.turns
        )
        loss = student_loss(self.student(batch.images), batch.teacher_logits, batch.labels)
        learn(loss, self.optimizer)


def learn(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step down a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def warmed_up_generator(run: Run, file: Path) -> GdfqGenerator:
    """Read the generator after the warm-up, or learn alone what it has to and write it down.

    Args:
        run: with the settings of any width and scheme.
        file: of the run's classifier and seed.
    """
    generator = GdfqGenerator(run.classifier.num_classes, run.classifier.preprocessing)
    if file.is_file():
        load_weights(generator, file)
        return generator
    training = GdfqGeneratorTraining(run, generator, run.rng(21))
    config = run.config.generator
    with Progress("gdfq warm-up", config.steps, run.config.log_interval) as progress:
        for step in range(1, config.steps + 1):
            loss = training.step(step, config.batch_size)[1]
            progress.update(step, {"generator loss": loss})
    training.teacher.remove_hooks()
    state = {name: value.cpu().contiguous() for name, value in generator.state_dict().items()}
    write_whole(file, safetensors.torch.save(state))
    return generator


def quantize_as_gdfq(run: Run, warmed_up: GdfqGenerator) -> QuantizedClassifier:
    """Quantize a run's classifier by GDFQ's settings.

    Args:
        run: classifier, scheme, batch sizes and random numbers. The schedule has as many steps,
            each with one batch of generated images, as generator learning and fine-tuning together.
        warmed_up: generator at the end of the warm-up; is not changed.
    """
    config, turns = run.config, run.config.fine_tuning.steps
    generating = GdfqGeneratorTraining(run, copy.deepcopy(warmed_up), run.rng(22))
    student = run.new_student()
    training = GdfqStudentTraining(student, turns)
    training.observe(generating.images(config.generator.batch_size)[0] for _ in range(OBSERVED))
    with Progress("gdfq", turns, config.log_interval) as progress:
        for turn in range(1, turns + 1):
            step = config.generator.steps + turn
            batch, loss = generating.step(step, config.fine_tuning.batch_size)
            training.step(turn, batch)
            progress.update(turn, {"generator loss": loss})
    generating.teacher.remove_hooks()
    round_biases_to_int32(student)
    return student
