"""Quantized classifiers as ONNX: the same integers as the student's, by integer kernels."""

import json
import math
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from exported import calibrated, calibrated_resnet20, noise, small_classifier
from networks import RGB8, as_trained, small_residual
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from zscgan_ext.errors import InputError
from zscgan_ext.export.integers import IntegerWeight
from zscgan_ext.export.onnx import layers as onnx_layers
from zscgan_ext.export.onnx import model as onnx_model
from zscgan_ext.export.onnx import verification
from zscgan_ext.export.onnx.graph import OnnxGraph, PendingClamp
from zscgan_ext.export.onnx.model import IR_VERSION, OPSET, quantized_model
from zscgan_ext.export.onnx.runtime import OnnxClassifier
from zscgan_ext.export.onnx.verification import verify
from zscgan_ext.quantization.scheme import QuantRange

WIDTHS = [(2, 2), (3, 8), (4, 4), (5, 3), (8, 8)]


class Mixed(nn.Module):
    """Maxima, concatenation, shuffling, squeeze-excite, SiLU and ReLU6 between layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stem_bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.branch = nn.Conv2d(8, 8, 1)
        self.branch_bn = nn.BatchNorm2d(8)
        self.shuffle = nn.ChannelShuffle(2)
        self.gate = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        x = self.pool(F.relu6(self.stem_bn(self.stem(images))))
        x = self.shuffle(torch.cat([x, F.silu(self.branch_bn(self.branch(x)))], 1))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def mixed():
    torch.manual_seed(1)
    return as_trained(Mixed())


@pytest.mark.parametrize("network", [small_residual, mixed])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), WIDTHS)
@pytest.mark.parametrize("scheme", ["deploy", "paper"])
def test_every_node_computes_what_the_student_does(scheme, weight_bits, activation_bits, network):
    classifier = small_classifier(network())
    student = calibrated(classifier, scheme, weight_bits, activation_bits)
    model, grids = quantized_model(student, classifier)
    assert list(grids) == [
        f"activation_quantizers.{name}"
        for name, _ in student.graph.get_submodule("activation_quantizers").named_children()
    ]
    result = verify(student, model, grids, noise(classifier))
    assert result.images == 128
    assert result.agreement >= 99.5
    assert result.logit_difference <= result.allowed_difference


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_resnet20_runs_on_integer_kernels(weight_bits, tmp_path):
    classifier, student = calibrated_resnet20("deploy", weight_bits, weight_bits)
    model, _ = quantized_model(student, classifier)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    optimized = onnx.load(tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in optimized.graph.node)
    assert kinds["QLinearConv"] == 21
    assert kinds["QLinearAdd"] == 9
    assert kinds["QGemm"] == 1
    assert kinds["QuantizeLinear"] == 1  # of the images
    assert not kinds["Conv"] + kinds["Gemm"] + kinds["DequantizeLinear"] + kinds["Relu"]


@pytest.mark.parametrize(
    ("bits", "scheme", "kind"),
    [
        (6, "deploy", TensorProto.INT8),
        (8, "paper", TensorProto.UINT8),
    ],
)
def test_weights_are_stored_in_the_narrowest_type(bits, scheme, kind):
    classifier = small_classifier()
    student = calibrated(classifier, scheme, bits, 8)
    model, _ = quantized_model(student, classifier)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert stored["depthwise_weight"].data_type == kind
    weight = numpy_helper.to_array(stored["depthwise_weight"]).astype(np.int64)
    expected = onnx_layers.integer_weight(student.graph.get_submodule("depthwise")).integers
    assert np.array_equal(weight, expected.numpy())


@pytest.mark.parametrize(("bits", "scheme"), [(4, "deploy"), (2, "deploy"), (3, "paper")])
def test_narrow_weights_are_stored_two_in_a_byte(bits, scheme):
    classifier = small_classifier()
    student = calibrated(classifier, scheme, bits, 8)
    model, _ = quantized_model(student, classifier)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    expected = onnx_layers.integer_weight(student.graph.get_submodule("depthwise")).integers
    packed = stored["depthwise_weight_packed"]
    assert packed.dtype == np.uint8
    assert packed.size == (expected.numel() + 1) // 2
    halves = np.stack([packed & 15, packed >> 4], -1).flatten().astype(np.int64)
    if scheme == "deploy":
        halves -= 16 * (halves > 7)
    assert np.array_equal(halves[: expected.numel()], expected.flatten())
    # No type of 4 bits, which ONNX Runtime casts from 1.23 on alone.
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert not kinds & {TensorProto.INT4, TensorProto.UINT4}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (4, 2, 3, 3), (256, 3)])
def test_narrow_weights_are_widened_exactly(signed, shape):
    integers = torch.arange(math.prod(shape)).reshape(shape) % 16 - 8 * signed
    scale, zero_point = torch.ones(shape[0]), torch.zeros(shape[0], dtype=torch.int16)
    range_ = QuantRange(-8, 7) if signed else QuantRange(0, 15)
    weight = IntegerWeight(integers.short(), scale, zero_point, range_)
    graph = OnnxGraph()
    graph.names.update(("images", "logits"))
    total = graph.node("Add", ["images", graph.dequantized_weight("weight", weight)], "logits")
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [])
    result = helper.make_tensor_value_info(total, TensorProto.FLOAT, shape)
    built = graph.build("alone", [given], [result])
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(built, opset_imports=opset, ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"images": np.zeros((), np.float32)})
    assert np.array_equal(found, integers.numpy())


def test_biases_are_int32_on_the_grid_of_the_products():
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 4, 4)
    model, _ = quantized_model(student, classifier)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, layer in (("stem", student.layers[0]), ("fc", student.layers[-1])):
        assert stored[f"{name}_bias"].dtype == np.int32
        bias = stored[f"{name}_bias"] * stored[f"{name}_bias_scale"].astype(np.float64)
        np.testing.assert_allclose(bias, layer.layer.bias.double(), rtol=1e-6, atol=1e-9)
        source = {"stem": "images", "fc": "pool"}[name]
        step = stored[f"activation_quantizers_{source}_scale"] * stored[f"{name}_weight_scale"]
        assert np.array_equal(stored[f"{name}_bias_scale"], step)


def test_a_bias_far_above_its_weights_fits_int32():
    model = small_residual()
    model.project.weight[3] *= 1e-12
    model.project.bias[3] = 2.0
    classifier = small_classifier(model)
    student = calibrated(classifier, "deploy", 8, 8)
    exported, grids = quantized_model(student, classifier)
    verify(student, exported, grids, noise(classifier))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in exported.graph.initializer}
    assert abs(int(stored["project_bias"][3])) > 2**29


def quantize_alone(x, low, high, scale, zero_point, top):
    """What a rectifier and a quantizer behind it make of x in ONNX Runtime."""
    graph = OnnxGraph()
    graph.names.add("images")
    value = PendingClamp("images", low, high)
    grid = graph.quantize(value, "q", torch.tensor([scale]), zero_point, top)
    logits = graph.floating(grid)
    graph.nodes.append(onnx.helper.make_node("Identity", [logits], ["logits"]))
    information = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1])
        for name in ("images", "logits")
    ]
    model = onnx.helper.make_model(
        graph.build("quantizer", information[:1], information[1:]),
        opset_imports=[onnx.helper.make_opsetid("", onnx_model.OPSET)],
        ir_version=onnx_model.IR_VERSION,
    )
    return OnnxClassifier(model.SerializeToString())(x.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("top", [3, 15, 255])
@pytest.mark.parametrize("zero_point", [0, 2])
@pytest.mark.parametrize(("low", "high"), [(0, float("inf")), (0, 6), (-1, 1)])
def test_rectifying_integers_is_rectifying_before(low, high, zero_point, top):
    x = torch.linspace(-10, 10, 4001) + 0.00137  # never in the middle between two integers
    scale = 6.4 / top
    expected = torch.fake_quantize_per_tensor_affine(x.clamp(low, high), scale, zero_point, 0, top)
    assert torch.equal(quantize_alone(x, low, high, scale, zero_point, top), expected)


def test_a_rectifier_that_a_quantizer_applies_itself_is_exported():
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 4, 4)
    before, _ = quantized_model(student, classifier)
    for name in ("relu", "relu6"):
        (node,) = (node for node in student.graph.graph.nodes if node.name == name)
        node.replace_all_uses_with(node.args[0])
        student.graph.graph.erase_node(node)
        student.graph.get_submodule(f"activation_quantizers.{name}").activation = name
    student.graph.recompile()
    after, _ = quantized_model(student, classifier)
    assert after == before


def test_the_batch_is_free_and_the_metadata_tell_how_to_prepare_images():
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 4, 8)
    model, _ = quantized_model(student, classifier)
    session = OnnxClassifier(model.SerializeToString())
    for batch_size in (1, 7):
        assert session(torch.zeros(batch_size, *RGB8.shape)).shape == (batch_size, 5)
    facts = session.metadata()
    assert json.loads(facts["mean"]) == list(RGB8.mean)
    assert json.loads(facts["std"]) == list(RGB8.std)
    assert json.loads(facts["image_size"]) == RGB8.image_size
    assert json.loads(facts["class_names"]) == list(classifier.class_names)
    assert json.loads(facts["bits"]) == {"weights": 4, "activations": 8}
    assert facts["scheme"] == "deploy"


# ---- faults must be found -----------------------------------------------------------------------


def exported_with_fault(monkeypatch, module, name, fault):
    """Export with one function of the writer replaced, then verify."""
    monkeypatch.setattr(module, name, fault)
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 8, 8)
    model, grids = quantized_model(student, classifier)
    verify(student, model, grids, noise(classifier))


def test_a_wrong_padding_is_found_where_it_is(monkeypatch):
    right = onnx_layers.convolution_pads

    def shifted(layer):
        pads = right(layer)
        return [2, 1, 0, 1] if layer.groups > 1 else pads

    with pytest.raises(
        InputError, match=r"first node that differs is activation_quantizers\.relu6"
    ):
        exported_with_fault(monkeypatch, onnx_layers, "convolution_pads", shifted)


def test_a_wrong_bias_of_the_last_layer_is_found(monkeypatch):
    right = onnx_layers.integer_bias

    def one_more(bias, weight_scale, input_scale):
        integers, scale = right(bias, weight_scale, input_scale)
        return integers + 2 * (len(integers) == 5), scale

    with pytest.raises(InputError, match="first node that differs is the last layer"):
        exported_with_fault(monkeypatch, onnx_layers, "integer_bias", one_more)


def test_too_little_agreement_is_an_error(monkeypatch):
    found = iter((99.4, 100.0))  # of ONNX Runtime, of the student with itself
    monkeypatch.setattr(verification, "agreement", lambda *_: next(found))
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 8, 8)
    model, grids = quantized_model(student, classifier)
    with pytest.raises(InputError, match=r"agrees with the student on 99.40 % of 128 images"):
        verify(student, model, grids, noise(classifier))


@pytest.mark.parametrize(("found", "passes"), [(93.4, False), (93.6, True)])
def test_a_student_that_disagrees_with_itself_allows_twice_as_much(monkeypatch, found, passes):
    figures = iter((found, 97.0))
    monkeypatch.setattr(verification, "agreement", lambda *_: next(figures))
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 8, 8)
    model, grids = quantized_model(student, classifier)
    if passes:
        assert verify(student, model, grids, noise(classifier)).own_agreement == 97.0
    else:
        with pytest.raises(InputError, match=r"on 93.40 % of 128 images, expected 93.50 % or more"):
            verify(student, model, grids, noise(classifier))


def test_logits_that_are_no_numbers_are_found():
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 8, 8)
    model, grids = quantized_model(student, classifier)
    for tensor in model.graph.initializer:
        if tensor.name == "fc_weight_scale":
            tensor.CopyFrom(numpy_helper.from_array(np.full(5, np.nan, np.float32), tensor.name))
    with pytest.raises(InputError, match="first node that differs is the last layer"):
        verify(student, model, grids, noise(classifier))
