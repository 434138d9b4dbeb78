"""What TensorRT wants of a file with explicit quantization, as its documentation says.

TensorRT refuses or ignores what breaks the first rules, and executes in floats, or in more kernels
than needed, what breaks the others. None of this needs TensorRT or a GPU to be seen.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from zscgan_ext.errors import InputError

LATEST_OPSET = 20
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Part of the layer before them, unless a quantizer stands between.
FUSED = ("Relu", "Clip", "BatchNormalization", "LeakyRelu", "HardSwish", "Sigmoid", "Tanh")
# Quantizing commutes with these, so that TensorRT moves quantizers across them.
MOVES_VALUES = (
    *("MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"),
    *("Slice", "Split", "Gather", "Concat", "Expand", "Tile", "Pad", "DepthToSpace"),
    *("SpaceToDepth", "Resize"),
)


class QuantizedFile:
    """An ONNX model, with what TensorRT's rules ask about."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.sources = {name: node for node in self.nodes for name in node.output}

    @cached_property
    def readers(self) -> dict[str, list[NodeProto]]:
        """The nodes that take each tensor."""
        found: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                found[name].append(node)
        return found

    def of(self, *kinds: str) -> Iterator[NodeProto]:
        """Yield the nodes of some kinds."""
        yield from (node for node in self.nodes if node.op_type in kinds)

    def kind_of(self, name: str) -> str:
        """Return the kind of the node that gives a tensor; empty for constants and images."""
        return self.sources[name].op_type if name in self.sources else ""

    def values(self, name: str) -> np.ndarray:
        """Return the values of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def moved_from(self, name: str) -> str:
        """Return the tensor whose values a tensor has, in other places."""
        while self.kind_of(name) in MOVES_VALUES:
            name = self.sources[name].input[0]
        return name

    def is_quantized_weight(self, name: str) -> bool:
        """Return True if a tensor is a constant of integers, dequantized."""
        return self.kind_of(name) == "DequantizeLinear" and (
            self.sources[name].input[0] in self.constants
        )

    def layers(self) -> Iterator[NodeProto]:
        """Yield the layers with quantized weights."""
        for node in self.of(*LAYERS):
            if self.is_quantized_weight(node.input[1]):
                yield node


Broken = Iterator[str]  # what breaks a rule, and how


def opset(file: QuantizedFile) -> Broken:
    """The operators are of a set that it reads."""
    for each in file.model.opset_import:
        if each.domain or not 13 <= each.version <= LATEST_OPSET:
            yield f"the opset {each.domain or each.version}, expected 13 to {LATEST_OPSET}"


def zero_points(file: QuantizedFile) -> Broken:
    """Quantization is symmetric."""
    for node in file.of("QuantizeLinear", "DequantizeLinear"):
        if len(node.input) > 2 and file.values(node.input[2]).any():
            yield f"{node.name} has zero points other than 0"


def integers(file: QuantizedFile) -> Broken:
    """Quantized are int8 tensors only: no uint8, and no bias of int32."""
    for node in file.of("QuantizeLinear", "DequantizeLinear"):
        held = node.input[2] if len(node.input) > 2 else node.input[0]
        if file.constants[held].data_type != TensorProto.INT8:
            yield f"{node.name} is not of int8"
    for node in file.of(*LAYERS):
        if len(node.input) > 2 and node.input[2] not in file.constants:
            yield f"{node.name} has a bias that is not stored in floats"


def pairs(file: QuantizedFile) -> Broken:
    """Nothing is computed between a quantizer and what undoes it."""
    for node in file.of("QuantizeLinear"):
        others = [n for n in file.readers[node.output[0]] if n.op_type != "DequantizeLinear"]
        if others:
            yield f"{others[0].name} computes with the integers of {node.name}"
    for node in file.of("DequantizeLinear"):
        source = node.input[0]
        if source not in file.constants and file.kind_of(source) != "QuantizeLinear":
            yield f"{node.name} takes integers that no QuantizeLinear gives"


def scales(file: QuantizedFile) -> Broken:
    """One scale for a whole activation, one for each output channel of a weight."""
    for node in file.of("QuantizeLinear"):
        if file.values(node.input[1]).ndim:
            yield f"{node.name} has several scales for an activation"
    for layer in file.layers():
        weight = file.sources[layer.input[1]]
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1)
        expected = 1 if layer.op_type == "ConvTranspose" else 0
        if file.values(weight.input[1]).ndim != 1 or axis != expected:
            yield f"{weight.name} has no scale for each output channel"


def inputs(file: QuantizedFile) -> Broken:
    """What a layer with quantized weights takes is quantized."""
    for layer in file.layers():
        if file.kind_of(file.moved_from(layer.input[0])) != "DequantizeLinear":
            yield f"{layer.name} takes an input that is not quantized"


def fusions(file: QuantizedFile) -> Broken:
    """No quantizer parts a layer from what would be computed with it."""
    for layer in file.of(*LAYERS):
        for reader in file.readers[layer.output[0]]:
            if reader.op_type != "QuantizeLinear":
                continue
            for undo in file.readers[reader.output[0]]:
                behind = file.readers[undo.output[0]]
                found = [n.op_type for n in behind if n.op_type in FUSED]
                if found:
                    yield f"{reader.name} parts {layer.name} from {found[0]}"


def sums(file: QuantizedFile) -> Broken:
    """A layer takes part in the sum behind it, where what is added to it is quantized."""
    for node in file.of("Add"):
        layers = [
            i
            for i, name in enumerate(node.input)
            if file.kind_of(name) in LAYERS and only_reader(file, name)
        ]
        others = [node.input[1 - i] for i in layers]
        if layers and not any(is_quantized_or_constant(file, name) for name in others):
            yield f"{node.name} adds a tensor to a layer that is not quantized"
        for name in node.input:
            if not layers and is_parted_from_layer(file, name):
                yield f"{node.name} is parted from the layer before it by a quantizer"


def is_quantized_or_constant(file: QuantizedFile, name: str) -> bool:
    """Return True if a tensor is stored, or has values that are quantized."""
    return name in file.constants or file.kind_of(file.moved_from(name)) == "DequantizeLinear"


def is_parted_from_layer(file: QuantizedFile, name: str) -> bool:
    """Return True if a tensor is a layer's result, quantized for its one reader alone."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        if file.kind_of(name) != kind or not only_reader(file, name):
            return False
        name = file.sources[name].input[0]
    return file.kind_of(name) in LAYERS and only_reader(file, name)


def only_reader(file: QuantizedFile, name: str) -> bool:
    """Return True if one node alone takes a tensor."""
    return len(file.readers[name]) == 1


RULES: tuple[Callable[[QuantizedFile], Broken], ...] = (
    *(opset, zero_points, integers, pairs, scales, inputs, fusions, sums),
)


def check_tensorrt(model: ModelProto) -> None:
    """Require a file that TensorRT executes on integers, with layers fused.

    Raises:
        InputError: naming the first place that breaks a rule.
    """
    file = QuantizedFile(model)
    for rule in RULES:
        for broken in rule(file):
            raise InputError(f"target: tensorrt cannot execute this file as it should: {broken}")
