"""Calibrated students that the tests of export share."""

import torch
from networks import RGB8, normal_batches, small_residual

from zscgan_ext.classifiers.loading import Classifier, load_classifier
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme


def small_classifier(model=None, name="networks:small_residual", num_classes=5) -> Classifier:
    names = tuple(f"class {index}" for index in range(num_classes))
    return Classifier(name, model or small_residual(), num_classes, RGB8, names)


def calibrated(classifier: Classifier, scheme: str, weight_bits: int, activation_bits: int):
    """A student of a classifier, its ranges from normal noise."""
    shape = classifier.preprocessing.shape
    student = convert(classifier.model, Scheme(scheme, weight_bits, activation_bits), shape)
    calibrate(student, normal_batches(4, 16, *shape), 4)
    return lay_out(student.requires_grad_(False), torch.channels_last)


def calibrated_resnet20(scheme: str, weight_bits: int, activation_bits: int):
    """The bundled ResNet-20 and a student of it."""
    classifier = load_classifier("resnet20")
    return classifier, calibrated(classifier, scheme, weight_bits, activation_bits)


def noise(classifier: Classifier, count: int = 32, batches: int = 4):
    """Batches of normal images."""
    shape = classifier.preprocessing.shape
    return [images for images, _ in normal_batches(batches, count, *shape, seed=7)]
