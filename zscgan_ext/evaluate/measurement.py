"""Measuring a quantized classifier on labelled images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.evaluated_classifier import Evaluated
from zscgan_ext.evaluate.evaluation import Evaluation
from zscgan_ext.images.datasets import Images, check_labels, open_labelled
from zscgan_ext.images.memory_format import to_channels_last
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.measures import (
    agreement,
    expected_calibration_error,
    latencies,
    per_class,
    predict,
    top1,
    top5,
)
from zscgan_ext.zoo import open_bundled

BATCH = 250  # images
CPU = torch.device("cpu")


def open_data(
    data: str | Images | None,
    classifier: str,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
) -> Images:
    """Open labelled images that fit a classifier.

    Args:
        data: their name, or opened ones; None for those that come with a bundled classifier.
        classifier: its name.
        preprocessing: of the classifier.
        class_names: of the classifier.

    Raises:
        InputError: if there are no such images, or they do not fit.
    """
    if data is not None and not isinstance(data, str):
        check_labels(data, len(class_names))
        return data
    if data is not None:
        return open_labelled(data, "test", preprocessing, len(class_names))
    bundled = open_bundled(classifier, preprocessing, len(class_names))
    if bundled is None:
        raise InputError("data: give labelled images, only bundled classifiers have their own")
    return bundled


def measure(
    evaluated: Evaluated,
    data: Images,
    batch_size: int = BATCH,
    device: torch.device = CPU,
) -> Evaluation:
    """Measure a classifier on labelled images.

    Args:
        evaluated: its models on `device`.
        data: the images.
        batch_size: images in a batch.
        device: where the models are.

    Raises:
        InputError: if the batch size is below 1, or there are logits of other classes.
    """
    check_batch_size(batch_size)
    preprocessing, labels = evaluated.preprocessing, data.labels
    logits = predict(evaluated.model, data, preprocessing, batch_size, device)
    check_logits(logits, evaluated)
    float_logits = None
    if evaluated.float_model is not None:
        float_logits = predict(evaluated.float_model, data, preprocessing, batch_size, device)
    return Evaluation(
        images=len(data),
        top1=top1(logits, labels),
        top5=top5(logits, labels),
        calibration_error=expected_calibration_error(logits, labels),
        float_top1=None if float_logits is None else top1(float_logits, labels),
        agreement=None if float_logits is None else agreement(logits, float_logits),
        latency_ms=latency_by_batch(evaluated, data, batch_size, device),
        classes=per_class(logits, labels),
        class_names=evaluated.class_names,
    )


def check_batch_size(batch_size: object) -> None:
    """Require a number of images.

    Raises:
        InputError: if it is none, or below 1.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise InputError(f"batch_size: {batch_size!r}, needed is a whole number")
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size}, needed is a number above 0")


@torch.no_grad()
def latency_by_batch(
    evaluated: Evaluated, data: Images, batch_size: int, device: torch.device
) -> dict[int, float]:
    """Return the median time of one call, milliseconds, for one image and for a batch."""

    def answer(images: Tensor) -> Tensor:
        return evaluated.model(images).cpu()  # waits for the device

    images, _ = next(data.batches(batch_size, evaluated.preprocessing))
    images = to_channels_last(images.to(device))
    batches = {len(batch): batch for batch in (images[:1], images)}
    return {size: latencies([answer], batch)[0] for size, batch in batches.items()}


def check_logits(logits: Tensor, evaluated: Evaluated) -> None:
    """Require a finite logit for each class in logits [N, num_classes].

    Raises:
        InputError: telling what was found.
    """
    classes = len(evaluated.class_names)
    if logits.shape[1] != classes:
        raise InputError(f"the classifier gives {logits.shape[1]} logits for {classes} classes")
    if not bool(logits.isfinite().all()):
        raise InputError("the classifier gives NaN or infinite logits, needed are finite ones")
