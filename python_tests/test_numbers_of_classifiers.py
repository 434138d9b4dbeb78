"""Classifiers whose numbers are unusual: branches of zeros, roots, logits of any scale."""

import json
import math

import networks
import pytest
import torch
from networks import (
    RGB8,
    GeneralizedMean,
    RootMeanSquare,
    Scaled,
    SwitchedOff,
    UnitLength,
    gray_with,
    normal_batches,
    small_gray,
    small_residual,
)
from runs import TINY
from tensors import sample

import zscgan_ext
from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.errors import InputError
from zscgan_ext.export import node_by_node
from zscgan_ext.export.exporter import export
from zscgan_ext.images.datasets import LabelledImages
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.feature_distillation import feature_distance
from zscgan_ext.quantization.quantizers import best_symmetric_scale
from zscgan_ext.quantization.scheme import Scheme, symmetric_range
from zscgan_ext.train import main

GRAY = (1, 28, 28)
UNUSUAL = {
    "zeros": lambda: gray_with(SwitchedOff()),
    "nearly zeros": lambda: gray_with(SwitchedOff(1e-18)),
    "denormals": lambda: gray_with(SwitchedOff(1e-40)),
    "generalized mean": lambda: gray_with(pool=GeneralizedMean("mean")),
    "generalized mean by pooling": lambda: gray_with(pool=GeneralizedMean("average")),
    "root mean square": lambda: gray_with(pool=RootMeanSquare()),
    "unit length": lambda: gray_with(pool=UnitLength()),
    "large logits": lambda: gray_with(last=Scaled(4000.0)),
    "small logits": lambda: gray_with(last=Scaled(1e-4)),
}


def quantized(model, bits=8, scheme="deploy"):
    student = convert(model, Scheme(scheme, bits, bits), GRAY)
    calibrate(student, normal_batches(2, 16, *GRAY), 2)
    return student


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [*((kind, "deploy") for kind in UNUSUAL), ("zeros", "paper"), ("generalized mean", "paper")],
)
def test_a_run_trains_and_answers_as_the_classifier(kind, scheme, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks, "small_gray", lambda num_classes=10: UNUSUAL[kind]())
    arguments = ["--bits=w8a8", "--export=safetensors", f"--scheme={scheme}"]
    assert main([*TINY, *arguments, f"--output={tmp_path}"]) == 0, capsys.readouterr().err
    name = "networks:small_gray"
    student = zscgan_ext.load_quantized(tmp_path / "model.safetensors", name)
    images = sample(32, *GRAY)
    with torch.no_grad():
        expected = UNUSUAL[kind]()(images)
    error = (student(images) - expected).norm() / expected.norm()
    assert error < 0.1
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert all(math.isfinite(v) for v in json.loads(line).values() if isinstance(v, float))


@pytest.mark.parametrize("kind", ["generalized mean", "root mean square", "unit length"])
def test_what_roots_and_divisors_are_computed_from_stays_in_floats(kind):
    student = quantized(UNUSUAL[kind]())
    # The images, both rectified maps, and what the pooling gives: nothing within it.
    assert len(student.named_activation_quantizers()) == 4
    images = torch.zeros(2, *GRAY, requires_grad=True)
    student(images).sum().backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_weights_of_zeros_have_scales_with_a_finite_inverse():
    integers = symmetric_range(8)
    for weight in (torch.zeros(3, 2, 3, 3), torch.full((3, 2, 3, 3), 1e-42)):
        scale = best_symmetric_scale(weight, integers)
        assert bool((scale > 0).all())
        assert bool(scale.reciprocal().isfinite().all())
        assert bool(scale.log().exp().reciprocal().isfinite().all())
    # They stay zero while weights move by far less than the weights of such a layer.
    assert bool((best_symmetric_scale(torch.zeros(3, 18), integers) > 1e-3).all())


@pytest.mark.parametrize("gain", [0.0, 1e-30, 1e-20])
def test_feature_maps_of_zeros_tell_nothing(gain):
    teacher = [sample(4, 3, 5, 5), gain * sample(4, 3, 5, 5, seed=1)]
    student = [(x + 1e-3).requires_grad_() for x in teacher]
    distance = feature_distance(student, teacher)
    expected = feature_distance(student[:1], teacher[:1]) / 2
    torch.testing.assert_close(distance, expected)
    gradients = torch.autograd.grad(distance, student)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_small_feature_maps_still_count():
    teacher = [sample(4, 3, 5, 5), 1e-5 * sample(4, 3, 5, 5, seed=1)]
    student = [teacher[0], 2 * teacher[1]]
    assert feature_distance(student, teacher).item() == pytest.approx(0.5, rel=1e-4)


# ---- logits of any scale -------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [4000.0, 1.0, 1e-5])
def test_an_export_is_proven_in_the_scale_of_the_logits(factor, tmp_path):
    model = gray_with(last=Scaled(factor))
    classifier = load_classifier(model, image_size=28, mean=(0.5,), std=(0.25,))
    batches = [images for images, _ in normal_batches(2, 50, *GRAY)]
    report = export(classifier, quantized(classifier.model), batches, tmp_path, ["onnx"])["onnx"]
    plain = load_classifier(gray_with(), image_size=28, mean=(0.5,), std=(0.25,))
    of_plain = export(plain, quantized(plain.model), batches, tmp_path, ["onnx"])["onnx"]
    allowed = report["allowed_difference"]
    assert allowed == pytest.approx(factor * of_plain["allowed_difference"], rel=1e-3)


def test_logits_that_differ_by_more_are_refused_at_any_scale(tmp_path, monkeypatch):
    model = gray_with(last=Scaled(4000.0))
    classifier = load_classifier(model, image_size=28, mean=(0.5,), std=(0.25,))
    batches = [images for images, _ in normal_batches(2, 50, *GRAY)]
    step = node_by_node.product_step
    monkeypatch.setattr(node_by_node, "product_step", lambda student: step(student) / 1e6)
    with pytest.raises(InputError, match="the first node that differs is the last layer"):
        export(classifier, quantized(classifier.model), batches, tmp_path, ["onnx"])


# ---- nothing at all ------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [small_gray, *UNUSUAL.values()])
def test_an_empty_batch_gives_no_logits(build, tmp_path):
    model = build()
    classifier = load_classifier(model, image_size=28, mean=(0.5,), std=(0.25,))
    student = quantized(classifier.model)
    batches = [images for images, _ in normal_batches(1, 8, *GRAY)]
    export(classifier, student, batches, tmp_path, ["safetensors"])
    loaded = zscgan_ext.load_quantized(tmp_path / "model.safetensors", model)
    for answering in (student, loaded):
        logits = answering(torch.zeros(0, *GRAY))
        assert logits.shape == (0, 10)
        assert logits.dtype == torch.float32


def test_empty_batches_to_the_functions_give_one_line():
    classifier = load_classifier(small_residual(), image_size=8, mean=RGB8.mean, std=RGB8.std)
    empty = torch.zeros(0, *RGB8.shape)
    for images in ([empty], [(empty, torch.zeros(0, dtype=torch.int64))]):
        with pytest.raises(
            InputError, match="images: expected one or more images in each batch, got an empty one"
        ):
            zscgan_ext.quantize(classifier, images, calibration_batches=1)
    student = zscgan_ext.quantize(classifier, [sample(4, *RGB8.shape)], calibration_batches=1)
    nothing = LabelledImages(torch.zeros(0, *RGB8.shape, dtype=torch.uint8), torch.zeros(0).long())
    message = "data: expected images with a label for each, got 0 images"
    with pytest.raises(InputError, match=message):
        zscgan_ext.evaluate(student, classifier, nothing)
