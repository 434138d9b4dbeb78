"""A classifier's graph as an ONNX model, quantized (QDQ) or float."""

import json
from collections.abc import Callable

import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext.classifiers.graph import attribute_of, module_of
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.trials import TensorMetadata
from zscgan_ext.errors import one_line
from zscgan_ext.export.onnx.call import Call, preserving_qparams, reshaped
from zscgan_ext.export.onnx.graph import OnnxGraph, QuantizedValue, Value
from zscgan_ext.export.onnx.layers import (
    add_batch_norm,
    add_layer,
    add_quantized_layer,
    add_transposed_layer,
)
from zscgan_ext.export.onnx.operators import OPERATORS
from zscgan_ext.export.onnx.runtime import INPUT, OUTPUT
from zscgan_ext.export.onnx.shaping import expanded
from zscgan_ext.export.onnx.trial import try_out
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizer_placement import preserves_qparams
from zscgan_ext.quantization.quantizers import (
    ActivationQuantizer,
    QuantizedLayer,
    TransposedConvolution,
    WeightedLayer,
)

OPSET = 21  # the first with 4-bit integers
IR_VERSION = 10  # that goes with it
# What TensorRT is to read has the older form, unless it has operators that are not in it.
OPSET_OF_TENSORRT = 19
IR_VERSION_OF_TENSORRT = 9
LATER_OPERATORS = {"Gelu": 20, "AffineGrid": 20, "GridSample": 20}


@torch.no_grad()
def quantized_model(
    student: QuantizedClassifier, classifier: Classifier
) -> tuple[ModelProto, dict[str, QuantizedValue]]:
    """Write a calibrated student as ONNX in QDQ form.

    Returns:
        the model, and for each activation quantizer, in order, where its integers are.

    Raises:
        InputError: naming the node that cannot be exported.
    """
    properties = {"scheme": student.scheme.name}
    bits = {"weights": student.scheme.weight_bits, "activations": student.scheme.activation_bits}
    properties["bits"] = json.dumps(bits)
    layers = {name: str(bits) for name, bits in student.scheme.layers.items()}
    properties["layer_bits"] = json.dumps(layers)
    explicit = student.scheme.symmetric_activations
    with student.quantized_weights():
        return write(student.graph, classifier, properties, explicit)


def float_model(graph: fx.GraphModule, classifier: Classifier) -> ModelProto:
    """Write a float classifier's graph as ONNX."""
    return write(graph, classifier, {}, False)[0]


def write(
    graph: fx.GraphModule, classifier: Classifier, properties: dict[str, str], explicit: bool
) -> tuple[ModelProto, dict[str, QuantizedValue]]:
    """Write a graph as ONNX, with what the classifier expects of images as metadata.

    Args:
        graph: to write.
        classifier: that it is of.
        properties: more metadata.
        explicit: whether integers stand only between QuantizeLinear and DequantizeLinear, as
            TensorRT wants it.
    """
    shape = classifier.preprocessing.shape
    tried = try_out(graph, shape)
    results = tried.results
    onnx_graph = OnnxGraph(packs_weights=not explicit)
    onnx_graph.names.update((INPUT, OUTPUT))
    values: dict[fx.Node, Value] = {}
    quantized: dict[str, QuantizedValue] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = INPUT
        elif node.op == "output":
            logits = onnx_graph.floating(values[node.args[0]])
            onnx_graph.nodes.append(helper.make_node("Identity", [logits], [OUTPUT], OUTPUT))
        elif isinstance(results[node], TensorMetadata | list):
            call = Call(onnx_graph, node, module_of(graph, node), values, results)
            if node.op == "get_attr":
                value = constant(call, attribute_of(graph, node))
            elif node in tried.constants:
                value = constant(call, tried.constants[node])
            else:
                value = add_node(call)
            if isinstance(call.module, ActivationQuantizer) and isinstance(value, QuantizedValue):
                quantized[str(node.target)] = value
                if explicit:
                    value = onnx_graph.floating(value)
            values[node] = value
    images = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", *shape])
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", classifier.num_classes])
    opset, ir_version = OPSET, IR_VERSION
    if explicit:
        needed = (LATER_OPERATORS.get(node.op_type, 0) for node in onnx_graph.nodes)
        opset, ir_version = max(OPSET_OF_TENSORRT, *needed), IR_VERSION_OF_TENSORRT
    model = helper.make_model(
        onnx_graph.build(one_line(classifier.name), [images], [output]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name="zscgan_ext",
    )
    helper.set_model_props(model, metadata(classifier) | properties)
    onnx.checker.check_model(model, full_check=True)
    return model, quantized


def constant(call: Call, tensor: Tensor) -> Value:
    """Store a tensor of the classifier, or one row of it for all images."""
    tensor = tensor.detach()
    stored = tensor.float() if tensor.is_floating_point() else tensor
    name = call.graph.initializer(call.name, stored)
    if tuple(tensor.shape) == call.shape():
        return name
    return expanded(call, name, tuple(tensor.shape), call.shape())


def add_node(call: Call) -> Value:
    """Add one node of the classifier; return what it gives."""
    module = call.module
    if isinstance(module, ActivationQuantizer):
        return add_activation_quantizer(call, module)
    if isinstance(module, QuantizedLayer):
        quantized: QuantizedLayer = module
        return as_vectors(
            call,
            quantized.layer,
            lambda value: add_quantized_layer(call.graph, call.name, quantized, value),
        )
    if isinstance(module, nn.ConvTranspose2d):
        module = TransposedConvolution(module)
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose3d):
        return add_transposed_layer(call.graph, call.name, module, call.input())
    if isinstance(module, WeightedLayer | nn.Conv3d):
        layer: WeightedLayer | nn.Conv3d = module
        return as_vectors(call, layer, lambda value: add_layer(call.graph, call.name, layer, value))
    if isinstance(module, _BatchNorm):
        return add_batch_norm(call.graph, call.name, module, call.input())
    kind = call.node.target if module is None else type(module)
    if kind not in OPERATORS:
        raise call.unsupported("has no ONNX form here")
    return OPERATORS[kind](call)


def as_vectors(call: Call, layer: nn.Module, add: Callable[[Value], str]) -> Value:
    """Add a layer; a linear one maps vectors [N, features], for which there are integer kernels."""
    value = call.input()
    if not isinstance(layer, nn.Linear) or len(call.input_shape()) == 2:
        return add(value)
    vectors = preserving_qparams(call, lambda x: reshaped(call, x, (None, layer.in_features)))
    return reshaped(call, add(vectors), call.shape())


def add_activation_quantizer(call: Call, quantizer: ActivationQuantizer) -> Value:
    """Quantize a value as the student does."""
    scale, zero_point = quantizer.qparams()
    if quantizer.quant_range.signed:
        return call.graph.quantize_signed(call.input(), call.name, scale)
    top = quantizer.quant_range.quant_max
    zero, keep_rounding = int(zero_point.item()), meets_floats(call.node)
    return call.graph.quantize(call.input(), call.name, scale, zero, top, keep_rounding)


def meets_floats(quantizer: fx.Node) -> bool:
    """Return True if anything but a layer computes with what a quantizer gives, a sum say."""
    owner = quantizer.graph.owning_module
    assert owner is not None
    return any(
        not preserves_qparams(reader) and not isinstance(module_of(owner, reader), QuantizedLayer)
        for reader in quantizer.users
    )


def metadata(classifier: Classifier) -> dict[str, str]:
    """Return what a program needs to prepare images and to name classes, as JSON each."""
    preprocessing = classifier.preprocessing
    return {
        "classifier": one_line(classifier.name),  # a path may be no text, ONNX takes UTF-8 only
        "image_size": json.dumps(preprocessing.image_size),
        "mean": json.dumps(preprocessing.mean),
        "std": json.dumps(preprocessing.std),
        "class_names": json.dumps(classifier.class_names),
        "head": classifier.head.name,
    }
