"""The steps that `bench_train_step` measures, made of the trainer's own parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.baselines import plain_training
from benchmarks.baselines.plain_training import PlainGenerator
from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.config.configs import ExecutionConfig, FineTuningConfig, GeneratorConfig
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert, folded
from zscgan_ext.quantization.fine_tuning import StudentTrainer
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import GeneratorTrainer, synthetic_batches
from zscgan_ext.training.cuda_graphs import GraphedStep, StreamCapture
from zscgan_ext.training.execution import Execution, choose_execution
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

IMAGENET = Preprocessing(3, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS_BATCH = 8  # images
# An ordinary torch program as it comes, the same in the precision and memory format of the trainer,
# that compiled, and the trainer.
PLAIN = ExecutionConfig(
    precision="float32", memory_format="contiguous", keep_freed_memory=False, cuda_graphs="off"
)
ALIKE = replace(PLAIN, precision="auto", memory_format="channels_last")
EXECUTIONS = {
    "eager": PLAIN,
    "alike": ALIKE,
    "compiled": replace(ALIKE, compile=True),
    "native": ExecutionConfig(),
}
IMPLEMENTATIONS = tuple(EXECUTIONS)


@dataclass(frozen=True)
class Subject:
    """One step to measure, as `implementation` executes it."""

    classifier: str  # a bundled one, or the name of a torchvision model
    stage: str  # generator_step, fine_tuning_step, teacher or teacher_matched
    implementation: str  # one of IMPLEMENTATIONS
    batch: int  # images
    device: str  # cpu or cuda
    precision: Literal["float32", "bfloat16"]  # of all implementations but `eager`


class Parts:
    """Classifier, generator and configuration of one subject, ready on its device."""

    def __init__(self, subject: Subject) -> None:
        torch.manual_seed(0)
        self.device = torch.device(subject.device)
        self.config = GeneratorConfig(batch_size=subject.batch)
        execution = EXECUTIONS[subject.implementation]
        if execution.precision == "auto":
            execution = replace(execution, precision=subject.precision)
        self.execution: Execution = choose_execution(execution, self.device)
        self.is_native = subject.implementation == "native"
        if self.is_native:
            self.execution.apply()
        self.model, self.preprocessing = build_classifier(subject.classifier)
        self.model = self.placed(self.model)

    def placed(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and the memory format."""
        return model.to(self.device).to(memory_format=self.execution.memory_format)

    def rng(self, seed: int) -> torch.Generator:
        """Return a random number generator."""
        return torch.Generator(self.device).manual_seed(seed)

    def new_generator(self) -> ConditionalGenerator:
        """Return an untrained generator for the classifier."""
        count = self.model(torch.zeros(1, *self.preprocessing.shape, device=self.device)).shape[1]
        kind = ConditionalGenerator if self.is_native else PlainGenerator
        generator = kind(count, self.config.latent_dim, self.preprocessing)
        self.placed(generator)
        return generator


@torch.no_grad()
def build_classifier(name: str) -> tuple[nn.Module, Preprocessing]:
    """Return a frozen classifier: a bundled one, or an untrained one of torchvision.

    The untrained one gets batch-norm statistics that its activations have on noise: otherwise they
    would grow or vanish from layer to layer, and with them the losses.
    """
    if name in BUNDLED_CLASSIFIERS:
        bundled = load_classifier(name)
        return bundled.model, bundled.preprocessing
    model = torchvision.models.get_model(name).train()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = None  # the mean over all batches
    for _ in range(2):
        model(torch.randn(STATISTICS_BATCH, *IMAGENET.shape))
    model.eval().requires_grad_(False)
    return trace(model, IMAGENET.shape), IMAGENET


def generator_step(parts: Parts) -> Callable[[], Tensor]:
    """One step of generator learning."""
    generator = parts.new_generator()
    if isinstance(generator, PlainGenerator):
        return plain_training.generator_step(
            generator, parts.model, parts.config, parts.execution, parts.rng(1)
        )
    teacher = FrozenTeacher(parts.model, parts.config.distance)
    trainer = GeneratorTrainer(generator, teacher, parts.config, parts.execution, parts.rng(1))
    return lambda: trainer.step(trainer.sample())


def fine_tuning_step(parts: Parts) -> Callable[[], Tensor]:
    """One step of fine-tuning a W4A4 student, with the synthetic batch that it learns from."""
    memory_format, batch_size = parts.execution.memory_format, parts.config.batch_size
    generator = parts.new_generator().eval()
    batches = synthetic_batches(generator, batch_size, parts.rng(1), memory_format)
    student = convert(parts.model, Scheme("deploy", 4, 4), parts.preprocessing.shape)
    parts.placed(student)
    calibrate(student, batches, 1)
    config = FineTuningConfig(batch_size=batch_size)
    if not parts.is_native:
        model = parts.placed(folded(parts.model, parts.preprocessing.shape))
        return plain_training.fine_tuning_step(student, model, batches, config, parts.execution)
    trainer = StudentTrainer(student, parts.model, batches, config, parts.execution)
    return lambda: trainer.step(trainer.sample())


def teacher(parts: Parts) -> Callable[[], Tensor]:
    """The frozen classifier forward, and backward to the images; nothing is matched."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(parts.model(images).float(), labels)

    return forward_and_backward(parts, loss)


def teacher_matched(parts: Parts) -> Callable[[], Tensor]:
    """The same with the distance of batch-norm statistics in the loss."""
    teacher = FrozenTeacher(parts.model, parts.config.distance)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        logits, distance, _ = teacher.forward_with_batch_norm_loss(images)
        weight = parts.config.batch_norm_weight
        return F.cross_entropy(logits.float(), labels) + weight * distance

    return forward_and_backward(parts, loss)


def forward_and_backward(
    parts: Parts, loss: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[], Tensor]:
    """Return both passes from images to the gradient of the images; it gives the loss."""
    shape = (parts.config.batch_size, *parts.preprocessing.shape)
    images = torch.randn(shape, generator=parts.rng(1), device=parts.device)
    images = to_memory_format(images, parts.execution.memory_format).requires_grad_()
    labels = torch.zeros(len(images), dtype=torch.int64, device=parts.device)
    precision = parts.execution.new_precision()

    def step() -> Tensor:
        with precision.autocast():
            value = loss(images, labels)
        torch.autograd.grad(value, images)
        return value.detach()

    if parts.execution.cuda_graphs:
        return GraphedStep(step, StreamCapture(parts.device))
    return step


STAGES = {
    "generator_step": generator_step,
    "fine_tuning_step": fine_tuning_step,
    "teacher": teacher,
    "teacher_matched": teacher_matched,
}


def new_step(subject: Subject) -> Callable[[], Tensor]:
    """Return the step of a subject, to be taken again and again."""
    return STAGES[subject.stage](Parts(subject))
