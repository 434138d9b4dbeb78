"""Ranges of activations that fine-tuning starts from.

No way to choose them is the best for every scheme and width: where most is quantized to two bits,
batch norm has to bound them, and elsewhere such bounds cut off what the classifier needs. What
fine-tuning would make smaller, its loss, tells before the first step which of them fits.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from zscgan_ext import processes
from zscgan_ext.config import Settings
from zscgan_ext.quantization.calibration import RANGES, calibrate
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.fine_tuning import StudentTraining
from zscgan_ext.quantization.student_state import StudentState

# Of the loss of the first way: losses that are nearer say nothing about the fine-tuned students.
CLEARLY_LESS = 0.95


def choose_first_ranges(
    student: QuantizedClassifier,
    classifier: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    settings: Settings,
) -> dict[str, float]:
    """Calibrate a student in each of the ways of `calibrate`, and keep that of least loss.

    All ways have the same images, and the loss is that of fine-tuning on the last batch.

    Args:
        student: converted, its weights rounded; changed in place.
        classifier: the float one that it was converted from.
        batches: images [B, C, H, W] and labels [B]; `calibration_batches` of them are taken, and
            kept in memory meanwhile.
        settings: calibration_batches, and those of `student_loss` and of `feature_distance`.

    Returns:
        The loss of each way; the student has the ranges of the one that `least` names.
    """
    observed = list(islice(batches, settings.calibration_batches))
    before = copy.deepcopy(StudentState(student).state_dict())
    losses, states = {}, {}
    for ranges in RANGES:
        StudentState(student).load_state_dict(before)
        calibrate(student, iter(observed), len(observed), ranges, classifier)
        losses[ranges] = loss_before_fine_tuning(student, classifier, observed[-1], settings)
        states[ranges] = copy.deepcopy(StudentState(student).state_dict())
    StudentState(student).load_state_dict(states[least(losses)])
    return losses


def least(losses: Mapping[str, float]) -> str:
    """Name the ranges that have the least loss, or the first of `RANGES` if theirs is as good."""
    best, first = min(losses, key=lambda ranges: losses[ranges]), RANGES[0]
    return best if losses[best] < CLEARLY_LESS * losses[first] else first


@torch.no_grad()
def loss_before_fine_tuning(
    student: QuantizedClassifier,
    classifier: nn.Module,
    batch: tuple[Tensor, Tensor],
    settings: Settings,
) -> float:
    """Return the loss that the first step of fine-tuning would have on a batch of all processes."""
    loss, _ = StudentTraining(student, classifier, iter([batch]), settings).measure(*batch)
    return float(processes.averaged(loss))
