"""Ranges of activations that fine-tuning starts from.

No way to choose them is the best for every classifier and width: batch norm has to bound what is
coarse or sensitive, and elsewhere such bounds cut off what the classifier needs. What the student
answers with each of them tells which one fits. Its feature maps do not: their distance is mostly
that of the largest activations, which generated images may have and real ones not.
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from zscgan_ext import processes
from zscgan_ext.quantization.calibration import RANGES, observe_ranges, settle_ranges
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.fine_tuning import logit_divergence
from zscgan_ext.quantization.student_state import StudentState

# Of the divergence of the first way: nearer ones say nothing about the fine-tuned students.
CLEARLY_LESS = 0.75


@torch.no_grad()
def choose_first_ranges(
    student: QuantizedClassifier,
    classifier: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int,
    temperature: float,
) -> dict[str, float]:
    """Calibrate a student in each of the ways of `calibrate`, and keep the ranges `least` names.

    Images are observed once for all ways. The divergence of the student's logits from the
    classifier's, as in the loss of fine-tuning, is that on the last batch of all processes.

    Args:
        student: converted, its weights rounded; changed in place.
        classifier: the float one that it was converted from.
        batches: images [B, C, H, W], with labels, which are not looked at.
        count: batches to observe.
        temperature: of the divergence, as in the loss of fine-tuning.

    Returns:
        The divergence of each way.
    """
    images = observe_ranges(student, batches, count)
    logits = classifier(images)  # [B, num_classes]
    observed = copy.deepcopy(StudentState(student).state_dict())
    divergences, states = {}, {}
    for ranges in RANGES:
        StudentState(student).load_state_dict(observed)
        settle_ranges(student, images, ranges, classifier)
        divergence = logit_divergence(student(images), logits, temperature)
        divergences[ranges] = float(processes.averaged(divergence))
        states[ranges] = copy.deepcopy(StudentState(student).state_dict())
    StudentState(student).load_state_dict(states[least(divergences)])
    return divergences


def least(divergences: Mapping[str, float]) -> str:
    """Name the ranges of clearly the least divergence, or the first of `RANGES` if none are."""
    best, first = min(divergences, key=lambda ranges: divergences[ranges]), RANGES[0]
    return best if divergences[best] < CLEARLY_LESS * divergences[first] else first
