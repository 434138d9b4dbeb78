"""Fine-tuning a quantized classifier to answer as the float one does.

`L_S = distillation_weight * T^2 * KL(teacher / T || student / T) + feature_weight * D_F
+ label_weight * cross_entropy`, through straight-through gradients: the distillation of Hinton et
al. (2015), and `D_F`, how far the student's feature maps are from the teacher's at every activation
quantizer, in the way of FitNets (Romero et al., 2015).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zscgan_ext.classifiers.heads import SINGLE_LABEL, Head
from zscgan_ext.config.configs import FineTuningConfig
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.quantization.conversion import folded
from zscgan_ext.quantization.feature_distillation import feature_distance, pair_features
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.training.execution import Execution
from zscgan_ext.training.trainer import ParameterGroup, Trainer

# Quantization steps of its layer that a weight moves where another parameter moves by 1.
STEPS_OF_WEIGHTS = 100


def logit_divergence(
    logits: Tensor, teacher_logits: Tensor, temperature: float, head: Head = SINGLE_LABEL
) -> Tensor:
    """Return `T^2 * KL(teacher / T || student / T)` of logits [N, num_classes], a scalar."""
    divergence = head.divergence(logits.float() / temperature, teacher_logits.float() / temperature)
    return temperature**2 * divergence


def student_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    config: FineTuningConfig,
    head: Head = SINGLE_LABEL,
) -> Tensor:
    """Distillation and cross entropy of logits [N, num_classes] as one scalar."""
    divergence = logit_divergence(logits, teacher_logits, config.temperature, head)
    loss = config.distillation_weight * divergence
    if config.label_weight:
        loss = loss + config.label_weight * head.label_loss(logits, labels)
    return loss


def mirrored(images: Tensor) -> Tensor:
    """Mirror each image [B, C, H, W] left to right or leave it, with torch's random numbers."""
    is_mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(is_mirrored, images.flip(3), images)


@torch.no_grad()
def parameter_groups(
    student: QuantizedClassifier, config: FineTuningConfig
) -> list[ParameterGroup]:
    """Return what learns of a calibrated student: the weights of each layer, then all else.

    Adam's steps are as long as its rate, however small gradients are. Integers only change where
    that is a fair part of a layer's quantization step, which differs a hundredfold between layers
    once batch norm is folded.
    """
    rate = config.learning_rate / student.scheme.steps
    groups = [
        ParameterGroup(
            [layer.layer.weight], rate * STEPS_OF_WEIGHTS * float(layer.qparams().scale.mean())
        )
        for layer in student.layers
    ]
    weights = {id(layer.layer.weight) for layer in student.layers}
    others = [p for p in student.parameters() if id(p) not in weights]
    return [*groups, ParameterGroup(others, rate)]


class StudentTrainer(Trainer):
    """Fine-tunes weights, biases and learned scales of a student.

    Batch norm that was not folded keeps its statistics.

    Args:
        student: calibrated, on its device.
        teacher: the float classifier, of which a copy with batch norm folded is run: it is faster,
            and has the feature maps of a student whose batch norm is folded.
        batches: images [B, C, H, W] and labels [B], one for each step.
        config: steps, learning rate, weights of the loss.
        execution: how steps are executed, on the same device.
        head: what the logits mean.
    """

    # Agreement of student and teacher in percent of the images, or of the labels of all images.
    metrics = ("loss", "agreement")
    shown = metrics
    rate_option = "fine_tuning_learning_rate"

    def __init__(
        self,
        student: QuantizedClassifier,
        teacher: nn.Module,
        batches: Iterator[tuple[Tensor, Tensor]],
        config: FineTuningConfig,
        execution: Execution,
        head: Head = SINGLE_LABEL,
    ) -> None:
        self.head = head
        self.student = student.eval()
        self.teacher = lay_out(folded(teacher, student.image_shape), execution.memory_format)
        self.student_graph, self.teacher_graph = pair_features(
            student, self.teacher, wanted=config.feature_weight > 0
        )
        self.batches = batches
        self.config = config
        super().__init__(
            parameter_groups(student, config),
            (0.9, 0.999),
            config.steps,
            execution,
        )

    def models(self) -> dict[str, nn.Module]:
        """Return the models that take part in a step."""
        return {"classifier": self.teacher, "student": self.student}

    def sample(self) -> tuple[Tensor, ...]:
        """Return the next batch, half of its images mirrored where that is set."""
        images, labels = next(self.batches)
        return mirrored(images) if self.config.mirror else images, labels

    def loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the values of `metrics` [2]."""
        images, labels = batch
        with self.precision.autocast():
            with torch.no_grad():
                teacher_logits, teacher_features = self.teacher_graph(images)
            with self.student.quantized_weights():
                logits, features = self.student_graph(images)
        loss = student_loss(logits, teacher_logits, labels, self.config, self.head)
        if features:
            distance = feature_distance(features, teacher_features)
            loss = loss + self.config.feature_weight * distance
        is_same = self.head.chosen(logits) == self.head.chosen(teacher_logits)
        agreement = is_same.float().mean() * 100
        return loss, torch.stack([loss.detach(), agreement])
