"""Building an ONNX graph: nodes, initializers, and values as integers or in float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from zscgan_ext.export.integers import IntegerWeight, pack, unpack

PADDING_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # torch to ONNX
# The widest integers of which two share a byte.
BITS_OF_HALF_BYTE = 4
LARGEST_BYTE = 255


@dataclass(frozen=True)
class QuantizedValue:
    """Integers with the float32 scale and the zero point that they stand for, uint8 or int8."""

    integers: str
    scale_name: str
    zero_point_name: str
    scale: float
    zero_point: int
    signed: bool = False


@dataclass(frozen=True)
class PendingClamp:
    """A float32 tensor that is to be clamped, by itself or as part of a quantizer behind it."""

    source: str
    low: float
    high: float


# What a node of the classifier gives: a float32 tensor by its name, one of the above, or several.
Value: TypeAlias = "str | QuantizedValue | PendingClamp | list[Value]"


class OnnxGraph:
    """Collects nodes and initializers under names that no two of them share.

    Args:
        packs_weights: whether integers of up to 4 bits are stored two in a byte.
    """

    def __init__(self, packs_weights: bool = True) -> None:
        self.packs_weights = packs_weights
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.names: set[str] = set()
        # Of the integers in each byte, by whether they are signed.
        self.tables: dict[bool, str] = {}

    def unique(self, name: str) -> str:
        """Return the name, with a number where it is taken."""
        candidate, count = name, 1
        while candidate in self.names:
            count += 1
            candidate = f"{name}_{count}"
        self.names.add(candidate)
        return candidate

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        return self.nodes_of(op, inputs, [name], **attributes)[0]

    def nodes_of(
        self, op: str, inputs: Sequence[str], names: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs; return their names."""
        outputs = [self.unique(name) for name in names]
        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], **attributes))
        return outputs

    def initializer(self, name: str, values: Tensor | np.ndarray | np.generic) -> str:
        """Add a constant tensor; return its name."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        tensor = numpy_helper.from_array(np.array(array, order="C"), self.unique(name))
        self.initializers.append(tensor)
        return str(tensor.name)

    def floating(self, value: Value) -> str:
        """Return the name of a value's float32 tensor, which is computed here where it is not."""
        if isinstance(value, QuantizedValue):
            inputs = [value.integers, value.scale_name, value.zero_point_name]
            return self.node("DequantizeLinear", inputs, f"{value.integers}_dequantized")
        if isinstance(value, PendingClamp):
            if value.low == 0 and value.high == float("inf"):
                return self.node("Relu", [value.source], f"{value.source}_rectified")
            low = self.initializer(f"{value.source}_low", np.float32(value.low))
            high = self.initializer(f"{value.source}_high", np.float32(value.high))
            return self.node("Clip", [value.source, low, high], f"{value.source}_clipped")
        if isinstance(value, list):
            raise TypeError("value: expected one tensor, got several")
        return value

    def floating_apart(self, value: Value) -> str:
        """Return the name of a value's float32 tensor, the input of a layer with float weights.

        Behind a DequantizeLinear, ONNX Runtime would quantize the weights of that layer as well.
        """
        if not isinstance(value, QuantizedValue):
            return self.floating(value)
        name = value.integers
        x = self.node("Cast", [name], f"{name}_float", to=TensorProto.FLOAT)
        zero_point = self.initializer(f"{name}_float_zero", np.float32(value.zero_point))
        centered = self.node("Sub", [x, zero_point], f"{name}_centered")
        return self.node("Mul", [centered, value.scale_name], f"{name}_scaled")

    def quantize(
        self,
        value: Value,
        name: str,
        scale: Tensor,
        zero_point: int,
        top: int,
        keep_rounding: bool = False,
    ) -> QuantizedValue:
        """Quantize a value to 0 to `top`, between what the bounds of a rectifier become.

        Rounding is monotone: to clamp integers gives what clamping before rounding would.
        QuantizeLinear saturates at 0 and 255, so Max and Min of integers follow only where other
        bounds are tighter. ONNX Runtime computes what stands before QuantizeLinear on integers.

        OpenVINO would merge a Clip, and a QuantizeLinear alone, with the convolution before and the
        sum behind it, and leave out the rounding between both. A Max or Min prevents that.

        Args:
            value: what is quantized.
            name: for the integers.
            scale: one number.
            zero_point: the integer that stands for zero.
            top: the largest integer.
            keep_rounding: add a Min even where QuantizeLinear has all bounds.
        """
        scale_name = self.initializer(f"{name}_scale", scale.detach().float().reshape(()))
        zero_point_name = self.initializer(f"{name}_zero_point", np.uint8(zero_point))
        low, high = 0, top
        if isinstance(value, PendingClamp):
            inverse = np.float32(1) / np.float32(scale.item())
            bounds = np.rint(np.array([value.low, value.high], np.float32) * inverse) + zero_point
            low, high = (int(bound) for bound in bounds.clip(0, top))
            value = value.source
        inputs = [self.floating(value), scale_name, zero_point_name]
        integers = self.node("QuantizeLinear", inputs, name)
        if low > 0:
            bound = self.initializer(f"{name}_min", np.uint8(low))
            integers = self.node("Max", [integers, bound], f"{name}_from_min")
        if high < LARGEST_BYTE or keep_rounding:
            bound = self.initializer(f"{name}_max", np.uint8(high))
            integers = self.node("Min", [integers, bound], f"{name}_to_max")
        return QuantizedValue(
            integers, scale_name, zero_point_name, float(scale.item()), zero_point
        )

    def quantize_signed(self, value: Value, name: str, scale: Tensor) -> QuantizedValue:
        """Quantize a value to int8 around the zero point 0.

        Rectifiers stay in floats before it, where TensorRT makes them part of the layer.
        """
        scale_name = self.initializer(f"{name}_scale", scale.detach().float().reshape(()))
        zero_point = self.initializer(f"{name}_zero_point", np.int8(0))
        integers = self.node("QuantizeLinear", [self.floating(value), scale_name, zero_point], name)
        return QuantizedValue(integers, scale_name, zero_point, float(scale.item()), 0, signed=True)

    def dequantized_weight(self, name: str, weight: IntegerWeight, axis: int = 0) -> str:
        """Store a weight's integers and dequantize them along the axis of its output channels.

        Integers of up to 4 bits are stored two in a byte. ONNX Runtime widens them once, when it
        loads the file; its integer kernels take 8 bits.
        """
        signed = weight.range.signed
        if weight.range.bits <= BITS_OF_HALF_BYTE and self.packs_weights:
            integers = self.widened(name, weight)
        else:
            integers = self.initializer(name, to_bytes(weight.integers, signed))
        scale = self.initializer(f"{name}_scale", weight.scale)
        # Optional by ONNX, but without it ONNX Runtime computes a Gemm in float32.
        zero_point = self.initializer(f"{name}_zero_point", to_bytes(weight.zero_point, signed))
        inputs = [integers, scale, zero_point]
        return self.node("DequantizeLinear", inputs, f"{name}_dequantized", axis=axis)

    def widened(self, name: str, weight: IntegerWeight) -> str:
        """Store integers of up to 4 bits, two in a byte, and look them up in a table of all bytes.

        There are types of 4 bits, but no cast of them in ONNX Runtime before 1.23.
        """
        signed, shape = weight.range.signed, tuple(weight.integers.shape)
        packed = self.initializer(f"{name}_packed", pack(weight.integers, BITS_OF_HALF_BYTE))
        if signed not in self.tables:
            halves = unpack(torch.arange(256).byte(), 512, BITS_OF_HALF_BYTE, signed)
            table = to_bytes(halves, signed).reshape(256, 2)
            self.tables[signed] = self.initializer("halves_of_bytes", table)
        index = self.node("Cast", [packed], f"{name}_index", to=TensorProto.INT32)
        wide = self.node("Gather", [self.tables[signed], index], f"{name}_wide")  # [bytes, 2]
        if weight.integers.numel() % 2:
            flat = self.initializer(f"{name}_flat", np.array([-1], np.int64))
            wide = self.node("Reshape", [wide, flat], f"{name}_halves")
            ends = [
                self.initializer(f"{name}_{end}", np.array([at], np.int64))
                for end, at in (("start", 0), ("end", weight.integers.numel()))
            ]
            wide = self.node("Slice", [wide, *ends], f"{name}_even")
        to = self.initializer(f"{name}_shape", np.array(shape, np.int64))
        return self.node("Reshape", [wide, to], f"{name}_shaped")

    def dequantized_bias(self, name: str, integers: np.ndarray, scale: np.ndarray) -> str:
        """Store a bias as int32 [O] and dequantize it by its scales [O]."""
        inputs = [
            self.initializer(name, integers.astype(np.int32)),
            self.initializer(f"{name}_scale", scale.astype(np.float32)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}_dequantized", axis=0)

    def build(self, name: str, inputs: list[Any], outputs: list[Any]) -> GraphProto:
        """Return the graph."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)


def to_bytes(integers: Tensor, signed: bool) -> np.ndarray:
    """Return integers as int8 or uint8."""
    array: np.ndarray = integers.numpy().astype(np.int8 if signed else np.uint8)
    return array
