"""Measuring a classifier: logits on labelled images, and what is counted on them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.classifiers.heads import MULTI_LABEL, SINGLE_LABEL, Head
from zscgan_ext.images.datasets import Images
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.images.preprocessing import Preprocessing


@torch.no_grad()
def predict(
    model: Callable[[Tensor], Tensor],
    data: Images,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Run all images through a model that is in eval mode.

    Args:
        model: maps images [B, C, H, W] on `device` to logits [B, num_classes].
        data: the images, in order.
        preprocessing: of the classifier.
        batch_size: images in a batch.
        device: where the model is.
        memory_format: of the images.

    Returns:
        logits, float32 [N, num_classes] on the CPU; [0] without images.
    """
    logits, _ = predict_together([model], data, preprocessing, batch_size, device, memory_format)
    return logits[0]


@torch.no_grad()
def predict_together(
    models: Sequence[Callable[[Tensor], Tensor]],
    data: Images,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[list[Tensor], Tensor]:
    """Run all images through several models; each image is read once, and is the same for all.

    Args:
        models: each as `predict` takes it.
        data: the images, in order.
        preprocessing: of the classifier.
        batch_size: images in a batch.
        device: where the models are.
        memory_format: of the images.

    Returns:
        what `predict` returns, of each model; and the first batch, as they are given it.
    """
    logits: list[list[Tensor]] = [[] for _ in models]
    first = torch.empty(0)
    for images, _ in data.batches(batch_size, preprocessing):
        batch = to_memory_format(images.to(device), memory_format)
        first = first if first.numel() else batch.clone()
        for model, found in zip(models, logits, strict=True):
            found.append(model(batch).float().cpu())
    return [torch.cat(found) if found else torch.empty(0) for found in logits], first


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the percentage of images [N] whose largest logit [N, num_classes] is the label's."""
    return percentage(logits.argmax(1) == labels)


def top5(logits: Tensor, labels: Tensor) -> float:
    """Return the percentage of images whose label is among the five largest logits."""
    largest = logits.topk(min(5, logits.shape[1]), dim=1).indices  # [N, 5]
    return percentage((largest == labels[:, None]).any(1))


def agreement(logits: Tensor, float_logits: Tensor, head: Head = SINGLE_LABEL) -> float:
    """Return the percentage of images that both models put in the same class.

    Of several labels, it is the percentage of those of all images that both decide alike.
    """
    return percentage(head.chosen(logits) == head.chosen(float_logits))


def percentage(matches: Tensor) -> float:
    """Return how many of some booleans hold, in percent."""
    return 100 * int(matches.sum()) / matches.numel()


def average_precisions(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the average precision of each label, percent, float64 [num_classes].

    It is the mean of the precision over the images with the label, each taken among those whose
    logit is as large or larger (Zhu, 2004). NaN for a label that no image has.

    Args:
        logits: [N, num_classes].
        labels: int64 [N, num_classes], 1 for each that applies.
    """
    found = []
    for scores, truth in zip(logits.double().T, labels.double().T, strict=True):
        order = scores.argsort(descending=True)
        scores, truth = scores[order], truth[order]
        # Images of equal logits have no order among them: each counts as the last of them.
        last = torch.searchsorted(-scores, -scores, right=True) - 1
        precision = truth.cumsum(0)[last] / (last + 1)
        found.append((precision * truth).sum() / truth.sum())
    return 100 * torch.stack(found)


def mean_average_precision(logits: Tensor, labels: Tensor) -> float | None:
    """Return the mean of `average_precisions` over the labels that an image has; None without."""
    each = average_precisions(logits, labels)
    return None if bool(each.isnan().all()) else float(each.nanmean())


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return how far confidence is from accuracy, in percent (Guo et al., 2017, eq. 3).

    Images are put into bins of equal width by their confidence, the largest softmax probability;
    the distances between mean confidence and accuracy of each bin are averaged over the images.

    Args:
        logits: [N, num_classes].
        labels: int64 [N].
        bins: their number.
    """
    confidence, predicted = logits.double().softmax(1).max(1)  # [N] each
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are open below
    excess = confidence - (predicted == labels).double()
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, excess)
    return 100 * float(sums.abs().sum()) / labels.numel()


@dataclass(frozen=True)
class ClassResult:
    """What was measured of one class."""

    label: int
    images: int
    recall: float  # percent of its images that are put into it
    precision: float | None  # percent of the images put into it that belong there; None for none


@dataclass(frozen=True)
class LabelResult:
    """What was measured of one of several labels."""

    label: int
    images: int  # to which it applies
    average_precision: float  # percent
    recall: float  # percent of its images that are given it
    precision: float | None  # percent of the images given it to which it applies; None for none


def per_label(logits: Tensor, labels: Tensor) -> list[LabelResult]:
    """Return the results of each label that occurs in [N, num_classes], given as many logits."""
    given = MULTI_LABEL.chosen(logits)
    images, chosen, right = (each.sum(0).tolist() for each in (labels, given, labels * given))
    precisions = average_precisions(logits, labels).tolist()
    return [
        LabelResult(
            label,
            images[label],
            precisions[label],
            100 * right[label] / images[label],
            100 * right[label] / chosen[label] if chosen[label] else None,
        )
        for label in range(len(images))
        if images[label]
    ]


def per_class(logits: Tensor, labels: Tensor) -> list[ClassResult]:
    """Return the results of each class that occurs in labels [N], given logits [N, num_classes]."""
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    images = labels.bincount(minlength=classes)
    chosen = predicted.bincount(minlength=classes)
    right = labels[predicted == labels].bincount(minlength=classes)
    return [
        ClassResult(
            label,
            int(images[label]),
            100 * int(right[label]) / int(images[label]),
            100 * int(right[label]) / int(chosen[label]) if chosen[label] else None,
        )
        for label in images.nonzero().flatten().tolist()
    ]


def latencies(
    models: Sequence[Callable[[Tensor], Any]], images: Tensor, seconds: float = 0.5
) -> list[float]:
    """Return the median time of one call of each model on images [N, C, H, W], milliseconds.

    The models take turns, so that whatever else the machine does slows them alike.

    Args:
        models: what to call.
        images: normalized.
        seconds: to spend on each model, about; at least 5 calls are made.
    """
    measured: list[list[float]] = [[] for _ in models]
    for model in models:
        model(images)
    begin, longest = time.perf_counter(), seconds * len(models)
    # A clock that is set back ends it too.
    while len(measured[0]) < 5 or 0 <= time.perf_counter() - begin < longest:
        for model, times in zip(models, measured, strict=True):
            start = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times) for times in measured]
