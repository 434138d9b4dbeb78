"""Quantizing a classifier in seconds, without a generator: its batch norms tell everything."""

import torch

from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.quantization.batch_norm_ranges import calibrate_from_batch_norm
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.squant import round_weights


@torch.no_grad()
def quantize_from_batch_norm(
    student: QuantizedClassifier, classifier: Classifier, rng: torch.Generator
) -> None:
    """Round the weights of a student and set its ranges, without any image.

    Args:
        student: converted from the classifier; changed in place.
        classifier: the float one, on the same device.
        rng: draws; on that device.

    Raises:
        InputError: if the classifier cannot be traced.
    """
    round_weights(student)
    calibrate_from_batch_norm(student, classifier.model, classifier.preprocessing, rng)
