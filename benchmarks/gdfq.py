"""The settings of GDFQ, for comparison (Xu et al., ECCV 2020, arXiv 2003.03603).

What is theirs: the generator and how the class enters it, both losses and their weights,
optimizers, learning rates and their steps, the warm-up of the generator alone, ranges observed
during it and then frozen, and one batch of images for a step of the generator and one of the
student. The schedule has the length that this benchmark gives it; theirs has 80,000 steps, and a
warm-up of 800. Cut down in proportion, few steps would be left of the warm-up, whose images are
noise still: with 2 steps of 200 instead of 40, ranges were so wrong that W4A4 of resnet20 fell
from 89 to 60 %. So the warm-up is as long as generator learning is here. Other than theirs,
gradients stop where an activation is clipped.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscgan_ext.batch_norm_matching import FrozenTeacher
from zscgan_ext.memory_format import to_memory_format
from zscgan_ext.preprocessing import Preprocessing
from zscgan_ext.progress import Progress
from zscgan_ext.quantization.biases import round_biases
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationMode
from zscgan_ext.run import Run, new_student

LATENT_DIM = 100
BATCH_NORM_WEIGHT = 0.1
TEMPERATURE = 20
GENERATOR_LEARNING_RATE = 1e-3
STUDENT_LEARNING_RATE = 1e-4
RATE_STEPS = (1 / 4, 1 / 2, 3 / 4)  # of the schedule, where learning rates fall to a tenth
OBSERVED = 10  # batches that the moving average of ranges is about as long as


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
        self.image_size = preprocessing.image_size
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


class GdfqTraining:
    """The generator and the student, learning in turns.

    Args:
        run: classifier, settings and random numbers.
        student: not calibrated.
        warm_up: first steps, in which the generator learns alone.
        steps: length of the schedule.
    """

    def __init__(self, run: Run, student: QuantizedClassifier, warm_up: int, steps: int) -> None:
        self.run = run
        self.student = student
        self.warm_up = warm_up
        self.random = run.random(21)
        self.teacher = FrozenTeacher(run.classifier.model, "mse")
        self.generator = GdfqGenerator(run.classifier.num_classes, run.classifier.preprocessing)
        self.generator.to(run.device).to(memory_format=run.execution.memory_format).train()
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(not name.endswith("log_scale"))  # ranges do not learn
        learned = [p for p in student.parameters() if p.requires_grad]
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), GENERATOR_LEARNING_RATE, (0.5, 0.999)
        )
        self.student_optimizer = torch.optim.SGD(
            learned, STUDENT_LEARNING_RATE, momentum=0.9, weight_decay=1e-4, nesterov=True
        )
        self.milestones = [fraction * steps for fraction in RATE_STEPS]

    def step(self, step: int) -> dict[str, float]:
        """Take a step, from 1, of the generator and, after the warm-up, of the student."""
        self.set_learning_rates(step)
        settings, alone = self.run.settings, step <= self.warm_up
        size = settings.batch_size if alone else settings.fine_tuning_batch_size
        shape = (size, LATENT_DIM)
        device = self.run.device
        latent = torch.randn(shape, generator=self.random, device=device)
        classes = self.generator.num_classes
        labels = torch.randint(classes, shape[:1], generator=self.random, device=device)
        images = self.generator(latent, labels)
        images = to_memory_format(images, self.run.execution.memory_format)
        teacher_logits, distance, _ = self.teacher.match(images)
        generator_loss = F.cross_entropy(teacher_logits, labels) + BATCH_NORM_WEIGHT * distance
        learn(generator_loss, self.generator_optimizer)
        images, teacher_logits = images.detach(), teacher_logits.detach()
        if alone:
            self.observe(images)
        else:
            self.student.set_activation_mode(ActivationMode.QUANTIZE)
            loss = student_loss(self.student(images), teacher_logits, labels)
            learn(loss, self.student_optimizer)
        return {"generator loss": generator_loss.item()}

    def set_learning_rates(self, step: int) -> None:
        """Divide both learning rates by ten for each part of the schedule that is over."""
        factor = 0.1 ** sum(step > milestone for milestone in self.milestones)
        self.generator_optimizer.param_groups[0]["lr"] = factor * GENERATOR_LEARNING_RATE
        self.student_optimizer.param_groups[0]["lr"] = factor * STUDENT_LEARNING_RATE

    @torch.no_grad()
    def observe(self, images: Tensor) -> None:
        """Move ranges towards those of a batch."""
        self.student.set_activation_mode(ActivationMode.OBSERVE)
        for quantizer in self.student.activation_quantizers:
            quantizer.observed_batches = min(quantizer.observed_batches, OBSERVED - 1)
        self.student(images)


def learn(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step down a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def quantize_as_gdfq(run: Run) -> QuantizedClassifier:
    """Quantize a run's classifier by GDFQ's settings.

    Args:
        run: classifier, scheme, batch size and random numbers. The schedule has as many steps, each
            with one batch of generated images, as generator learning and fine-tuning together.
    """
    warm_up = run.settings.synthesis_steps
    steps = warm_up + run.settings.fine_tuning_steps
    student = new_student(run.settings, run.classifier, run.execution)
    training = GdfqTraining(run, student, warm_up, steps)
    with Progress("gdfq", steps, run.settings.log_interval) as progress:
        for step in range(1, steps + 1):
            progress.update(step, training.step(step))
    training.teacher.remove_hooks()
    student.set_activation_mode(ActivationMode.QUANTIZE)
    round_biases(student)
    return student
