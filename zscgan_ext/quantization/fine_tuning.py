"""Fine-tuning a quantized classifier to answer as the float one does.

`L_S = distillation_weight * T^2 * KL(teacher / T || student / T) + feature_weight * D_F
+ label_weight * cross_entropy`, through straight-through gradients: the distillation of Hinton et
al. (2015), and `D_F`, how far the student's feature maps are from the teacher's at every activation
quantizer, in the way of FitNets (Romero et al., 2015).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscgan_ext.classifiers.graph import device_of
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.quantization.conversion import folded
from zscgan_ext.quantization.feature_distillation import feature_distance, pair_features
from zscgan_ext.quantization.quantized_classifier import (
    QuantizedClassifier,
    round_biases_to_int32,
)
from zscgan_ext.settings.config import Settings
from zscgan_ext.training.execution import choose_execution
from zscgan_ext.training.steps import Training, as_it_is, every_step, nothing


@dataclass(frozen=True)
class FineTuningStep:
    """What one step measured."""

    step: int  # 1 to fine_tuning_steps
    loss: float
    agreement: float  # percent of images on which student and teacher agree


def logit_divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `T^2 * KL(teacher / T || student / T)` of logits [N, num_classes], a scalar."""
    divergence = F.kl_div(
        F.log_softmax(logits.float() / temperature, dim=1),
        F.log_softmax(teacher_logits.float() / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    return temperature**2 * divergence


def student_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, settings: Settings
) -> Tensor:
    """Distillation and cross entropy of logits [N, num_classes] as one scalar."""
    divergence = logit_divergence(logits, teacher_logits, settings.temperature)
    loss = settings.distillation_weight * divergence
    if settings.label_weight:
        loss = loss + settings.label_weight * F.cross_entropy(logits.float(), labels)
    return loss


class StudentTraining(Training):
    """Fine-tuning, step by step: weights, biases and learned scales of the student.

    Batch norm that was not folded keeps its statistics.

    Args:
        student: calibrated.
        teacher: the float classifier, of which a copy with batch norm folded is run: it is faster,
            and has the feature maps of a student whose batch norm is folded.
        batches: images [B, C, H, W] and labels [B], one for each step.
        settings: fine_tuning_steps, fine_tuning_learning_rate, distillation_weight, feature_weight,
            label_weight, temperature, and how to execute.
    """

    rate_setting = "fine_tuning_learning_rate"

    def __init__(
        self,
        student: QuantizedClassifier,
        teacher: nn.Module,
        batches: Iterator[tuple[Tensor, Tensor]],
        settings: Settings,
    ) -> None:
        self.student = student.eval()
        execution = choose_execution(settings, device_of(student))
        self.teacher = lay_out(folded(teacher, student.image_shape), execution.memory_format)
        self.student_graph, self.teacher_graph = pair_features(
            student, self.teacher, wanted=settings.feature_weight > 0
        )
        self.batches = batches
        self.settings = settings
        super().__init__(
            student.parameters(),
            # A weight that moves a step changes the layer; how far that is depends on the width.
            settings.fine_tuning_learning_rate / student.scheme.steps,
            (0.9, 0.999),
            settings.fine_tuning_steps,
            execution,
        )

    def models(self) -> dict[str, nn.Module]:
        """Return the models that take part in a step."""
        return {"classifier": self.teacher, "student": self.student}

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the next batch."""
        return next(self.batches)

    def measure(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the values of a `FineTuningStep` [2]."""
        images, labels = inputs
        with self.precision.autocast():
            with torch.no_grad():
                teacher_logits, teacher_features = self.teacher_graph(images)
            with self.student.quantized_weights():
                logits, features = self.student_graph(images)
        loss = student_loss(logits, teacher_logits, labels, self.settings)
        if features:
            loss = loss + self.settings.feature_weight * feature_distance(
                features, teacher_features
            )
        agreement = (logits.argmax(1) == teacher_logits.argmax(1)).float().mean() * 100
        return loss, torch.stack([loss.detach(), agreement])


def fine_tune(
    student: QuantizedClassifier,
    teacher: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    settings: Settings,
    report: Callable[[FineTuningStep], None],
    is_due: Callable[[int], bool] = every_step,
    after_step: Callable[[], None] = nothing,
    before_steps: Callable[[Training], object] = as_it_is,
) -> None:
    """Train weights, biases and learned scales of the student in place.

    At the end biases are rounded to such as integer kernels add.

    Args:
        student: see `StudentTraining`, as for teacher, batches and settings.
        teacher: the float classifier.
        batches: at least `fine_tuning_steps` of them.
        settings: what is learned, and how.
        report: called after each step that is due.
        is_due: tells, for the number of a step, whether to wait for what it measured.
        after_step: called after each step.
        before_steps: is handed the training, which it may put into a state to go on from.
    """
    training = StudentTraining(student, teacher, batches, settings)
    before_steps(training)

    def report_values(step: int, values: list[float]) -> None:
        report(FineTuningStep(step, *values))

    training.run(settings.fine_tuning_steps, report_values, is_due, after_step)
    round_biases_to_int32(student)
