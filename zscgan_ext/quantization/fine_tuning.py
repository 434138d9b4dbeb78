"""Fine-tuning a quantized classifier to answer as the float one does.

`L_S = distillation_weight * T^2 * KL(teacher / T || student / T) + label_weight * cross_entropy`
(Hinton et al., 2015), through straight-through gradients.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscgan_ext.config import Settings
from zscgan_ext.precision import Precision
from zscgan_ext.quantization.biases import round_biases
from zscgan_ext.quantization.conversion import QuantizedClassifier, device_of


@dataclass(frozen=True)
class FineTuningStep:
    """What one step measured."""

    step: int  # 1 to fine_tuning_steps
    loss: float
    agreement: float  # percent of images on which student and teacher agree


def student_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, settings: Settings
) -> Tensor:
    """Distillation and cross entropy of logits [N, num_classes] as one scalar."""
    temperature = settings.temperature
    divergence = F.kl_div(
        F.log_softmax(logits.float() / temperature, dim=1),
        F.log_softmax(teacher_logits.float() / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    loss = settings.distillation_weight * temperature**2 * divergence
    if settings.label_weight:
        loss = loss + settings.label_weight * F.cross_entropy(logits.float(), labels)
    return loss


def fine_tune(
    student: QuantizedClassifier,
    teacher: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    settings: Settings,
    report: Callable[[FineTuningStep], None],
) -> None:
    """Train weights, biases and learned scales of the student in place.

    Batch norm that was not folded keeps its statistics. At the end biases are rounded to such as
    integer kernels add.

    Args:
        student: calibrated.
        teacher: the float classifier, frozen.
        batches: images [B, C, H, W] and labels [B], at least `fine_tuning_steps` of them.
        settings: fine_tuning_steps, fine_tuning_learning_rate (Adam's, at the start; it falls to
            zero along a cosine), distillation_weight, label_weight, temperature, precision.
        report: called after each step.
    """
    student.eval()
    precision = Precision(settings.precision, device_of(student))
    optimizer = torch.optim.Adam(
        student.parameters(), lr=settings.fine_tuning_learning_rate, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.fine_tuning_steps)
    for step in range(1, settings.fine_tuning_steps + 1):
        images, labels = next(batches)
        with precision.autocast():
            with torch.no_grad():
                teacher_logits = teacher(images)
            logits = student(images)
        loss = student_loss(logits, teacher_logits, labels, settings)
        precision.step(loss, optimizer)
        schedule.step()
        agreement = (logits.argmax(1) == teacher_logits.argmax(1)).float().mean() * 100
        report(FineTuningStep(step, *torch.stack([loss.detach(), agreement]).tolist()))
    round_biases(student)
