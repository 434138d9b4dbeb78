"""Files for TensorRT: its rules, each of which a broken file breaks, and what the files compute."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from exported import calibrated, noise, small_classifier
from networks import as_trained
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import zscgan_ext
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.errors import InputError
from zscgan_ext.export.onnx import tensorrt
from zscgan_ext.export.onnx.model import quantized_model
from zscgan_ext.export.onnx.tensorrt import QuantizedFile, check_tensorrt
from zscgan_ext.export.onnx.verification import verify
from zscgan_ext.quantization.scheme import QuantRange


class Blocks(nn.Module):
    """A residual block with a shortcut layer, a plain one, a gate, a pool and an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.first_bn = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.second_bn = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.depthwise, self.gate = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.plain = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.fc = nn.Linear(6, 5)

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.stem_bn(self.stem(images))), 2)
        y = self.second_bn(self.second(F.relu6(self.first_bn(self.first(x)))))
        x = F.relu(y + self.shortcut(x))
        y = F.silu(self.depthwise(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        x = x + self.plain(y)
        return self.fc(F.relu(self.up(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def exported():
    """A classifier, its student for TensorRT, the student's file and its integers."""
    torch.manual_seed(0)
    classifier = small_classifier(as_trained(Blocks()))
    student = calibrated(classifier, "symmetric", 8, 8)
    return classifier, student, *quantized_model(student, classifier)


@pytest.fixture
def model(exported):
    """The file, to break."""
    copy = onnx.ModelProto()
    copy.CopyFrom(exported[2])
    return copy


def node_of(model, name):
    (node,) = (node for node in model.graph.node if node.name == name)
    return node


def constant_of(model, name):
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return tensor


def store(model, name, values):
    """Put other values in the place of a constant, or store another one."""
    tensor = numpy_helper.from_array(np.asarray(values), name)
    for each in model.graph.initializer:
        if each.name == name:
            each.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def put_behind(model, tensor, *kinds):
    """Let nodes with the scale of the images stand between a tensor and all that take it."""
    readers = [node for node in model.graph.node if tensor in node.input]
    scale, zero = node_of(model, "activation_quantizers_images").input[1:]
    source = tensor
    for kind in kinds:
        inputs = [source, scale, zero] if "Linear" in kind else [source]
        model.graph.node.append(
            helper.make_node(kind, inputs, [f"{source}_{kind}"], f"{source}_{kind}")
        )
        source = f"{source}_{kind}"
    for node in readers:
        node.input[list(node.input).index(tensor)] = source


def bypass(model, tensor):
    """Hand on what a quantizer and its DequantizeLinear take."""
    undo = next(n for n in model.graph.node if tensor in n.output)
    quantizer = next(n for n in model.graph.node if undo.input[0] in n.output)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == tensor:
                node.input[i] = quantizer.input[0]


PAIR = ("QuantizeLinear", "DequantizeLinear")
BREAKS = {
    "opset": lambda m: setattr(m.opset_import[0], "version", 21),
    "zero_points": lambda m: store(m, "activation_quantizers_relu_zero_point", np.int8(3)),
    "zero_points of a weight": lambda m: store(m, "stem_weight_zero_point", np.int8([1] * 8)),
    "integers": lambda m: store(m, "activation_quantizers_relu_zero_point", np.uint8(0)),
    "integers of a bias": lambda m: put_behind(m, "stem_bias", "Identity"),
    "pairs": lambda m: put_behind(m, "activation_quantizers_relu", "MaxPool"),
    "pairs, no quantizer": lambda m: put_behind(m, "activation_quantizers_relu", "Identity"),
    "scales": lambda m: store(m, "activation_quantizers_relu_scale", np.float32([0.1, 0.2])),
    "scales of a weight": lambda m: store(m, "stem_weight_scale", np.float32(0.1)),
    "scales along another axis": lambda m: setattr(
        node_of(m, "stem_weight_dequantized").attribute[0], "i", 1
    ),
    "inputs": lambda m: bypass(m, "activation_quantizers_images_dequantized"),
    "fusions": lambda m: put_behind(m, "stem", *PAIR),
    "sums, both quantized": lambda m: put_behind(m, "second", *PAIR),
    "sums": lambda m: bypass(m, "activation_quantizers_shortcut_dequantized"),
}


def broken_rules(model):
    file = QuantizedFile(model)
    return [rule.__name__ for rule in tensorrt.RULES if list(rule(file))]


def test_the_file_keeps_all_rules(model):
    assert broken_rules(model) == []
    check_tensorrt(model)


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_file_breaks_its_rule(what, model):
    BREAKS[what](model)
    rule = what.split(",")[0].split()[0]
    assert rule in broken_rules(model)
    with pytest.raises(InputError, match="target: tensorrt cannot execute this file"):
        check_tensorrt(model)


def test_every_node_computes_what_the_student_does(exported):
    classifier, student, file, integers = exported
    result = verify(student, file, integers, noise(classifier))
    assert result.agreement >= 99.5
    assert result.logit_difference <= result.allowed_difference


def test_quantizers_stand_where_layers_read_and_where_sums_would_part(exported):
    _, student, _, _ = exported
    assert list(student.named_activation_quantizers()) == [
        *("images", "relu", "relu6", "shortcut", "relu_1", "mean", "mul", "add_1", "mean_1"),
    ]
    for quantizer in student.activation_quantizers:
        assert quantizer.quant_range == QuantRange(-128, 127)
        assert quantizer.qparams().zero_point == 0


def test_rectifiers_and_biases_stay_in_floats(exported):
    file = QuantizedFile(exported[2])
    quantizer = next(n for n in file.nodes if n.name == "activation_quantizers_relu6")
    assert file.kind_of(quantizer.input[0]) == "Clip"
    assert file.constants["second_bias"].data_type == TensorProto.FLOAT
    assert {t.data_type for t in file.constants.values()} <= {
        *(TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64)
    }


def test_narrow_weights_fill_bytes(exported):
    classifier = exported[0]
    student = calibrated(classifier, "symmetric", 4, 8)
    model, integers = quantized_model(student, classifier)
    check_tensorrt(model)
    weight = numpy_helper.to_array(constant_of(model, "first_weight"))
    assert weight.dtype == np.int8
    assert abs(weight).max() == 7
    assert verify(student, model, integers, noise(classifier)).agreement >= 99.5


def test_the_target_sets_what_was_not_given():
    config = RunConfig.of_options({"target": "tensorrt"})
    assert (config.quantization.bits, config.export) == ("w8a8", "onnx")
    assert str(config.output_folder()) == "runs/resnet20-w8a8-tensorrt-seed0"
    config = RunConfig.of_options({"target": "tensorrt", "bits": "w4a8", "export": "none"})
    assert (config.quantization.bits, config.export) == ("w4a8", "none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": "w4a4"}, "executes activations of 8 bits, got w4a4; give bits w8a8"),
        ({"scheme": "paper"}, "tensorrt needs the scheme deploy, got paper"),
    ],
)
def test_settings_that_tensorrt_cannot_execute(settings, message):
    with pytest.raises(InputError, match=message):
        RunConfig.of_options({"target": "tensorrt", **settings})


def test_the_python_api_takes_a_target(exported, tmp_path):
    classifier = exported[0]
    student = zscgan_ext.quantize(classifier, target="tensorrt")
    report = zscgan_ext.export(classifier, student, None, tmp_path, ["onnx", "safetensors"])
    assert report["target"] == "tensorrt"
    check_tensorrt(onnx.load(tmp_path / "model.onnx"))
    loaded = zscgan_ext.load_quantized(tmp_path / "model.safetensors", classifier.model)
    images = noise(classifier, 8, 1)[0]
    assert torch.equal(loaded(images), student(images))
    other = zscgan_ext.quantize(classifier, bits="w8a8")
    with pytest.raises(InputError, match=r"needs activations with the zero point 0.*--target"):
        zscgan_ext.export(classifier, other, None, tmp_path, ["onnx"], target="tensorrt")
    with pytest.raises(InputError, match=r"expected one of onnxruntime, .*, got 'trt'"):
        zscgan_ext.export(classifier, other, None, tmp_path, ["onnx"], target="trt")
