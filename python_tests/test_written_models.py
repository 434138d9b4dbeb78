"""Models that people write: what is traced, quantized and exported computes what the model does."""

import copy

import pytest
import torch
from written_models import SHAPE, WRITTEN, build, images

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.classifiers.normal_form.operators import OPERATORS
from zscgan_ext.export.exporter import check_exports
from zscgan_ext.export.onnx.model import quantized_model
from zscgan_ext.export.onnx.runtime import OnnxClassifier
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme

FUNCTIONS = {operator.function for operator in OPERATORS.values()}


@torch.no_grad()
def answers(model, batch):
    """What a model says of images; one that is compiled is run as it was written."""
    inner = getattr(model, "_orig_mod", model)
    if hasattr(getattr(inner, "second", None), "_orig_mod"):
        inner = copy.copy(inner)
        inner._modules = {**inner._modules, "second": inner.second._orig_mod}
    return inner(batch.clone())


@pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", WRITTEN)
@torch.no_grad()
def test_the_files_compute_what_the_model_does(name):
    model = build(name)
    batch = images(48)
    wanted = answers(model, batch)
    classifier = load_classifier(model, image_size=SHAPE[1], mean=(0.5,) * 3, std=(0.25,) * 3)
    given = batch.clone()
    found = classifier.model(given)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert torch.equal(given, batch)
    assert {n.target for n in classifier.model.graph.nodes if n.op == "call_function"} <= FUNCTIONS

    student = convert(classifier.model, Scheme("deploy", 8, 8), SHAPE)
    check_exports(classifier, copy.deepcopy(student), ["onnx", "safetensors"])
    calibrate(student, iter([(batch, None)]), 1)
    onnx_model, _ = quantized_model(student, classifier)
    scale = wanted.std(0).mean()
    for logits in (student(batch), OnnxClassifier(onnx_model.SerializeToString())(batch)):
        assert (logits - wanted).square().mean().sqrt() < 0.15 * scale
