"""The integers of quantized weights, and their packing into bytes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zscgan_ext.ops.layout import broadcast_per_channel
from zscgan_ext.quantization.quantizers import QuantizedLayer
from zscgan_ext.quantization.scheme import QuantRange


@dataclass(frozen=True)
class IntegerWeight:
    """A layer's weight as `(integers - zero_point) * scale`, per output channel."""

    integers: Tensor  # [O, ...], int16, so that signed and unsigned ones of 8 bits fit
    scale: Tensor  # [O], float32
    zero_point: Tensor  # [O], int16
    range: QuantRange

    def dequantize(self) -> Tensor:
        """Return the weight that the student computes with, float32 [O, ...], bit for bit."""
        offset = (self.integers - broadcast_per_channel(self.zero_point, self.integers, 0)).float()
        return offset * broadcast_per_channel(self.scale, self.integers, 0)


@torch.no_grad()
def integer_weight(layer: QuantizedLayer) -> IntegerWeight:
    """Quantize a layer's weight to integers, on the CPU, as the layer itself does."""
    scale, zero_point = (values.float() for values in layer.qparams())
    low, high = layer.quant_range.quant_min, layer.quant_range.quant_max
    weight = layer.layer.weight.float()
    rounded = torch.round(
        weight * broadcast_per_channel(1 / scale, weight, 0)
    ) + broadcast_per_channel(zero_point, weight, 0)
    integers = rounded.clamp(low, high).to("cpu", torch.int16).contiguous()
    return IntegerWeight(
        integers, scale.cpu(), zero_point.to("cpu", torch.int16), layer.quant_range
    )


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack integers into a stream of bits, without a gap.

    Integer i takes the bits `i * bits` to `(i + 1) * bits - 1` of the stream, its lowest first;
    bit k of the stream is bit `k % 8` of byte `k // 8`. Negative ones are in two's complement. So
    two integers of four bits share a byte, the first in its lower half.

    Args:
        integers: any shape, taken in row-major order.
        bits: 1 to 8.

    Returns:
        uint8 [ceil(elements * bits / 8)].
    """
    flat = (integers.flatten().numpy() & (2**bits - 1)).astype(np.uint8)
    stream = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(stream, bitorder="little"))


def unpack(packed: Tensor, count: int, bits: int, signed: bool) -> Tensor:
    """Undo `pack`.

    Args:
        packed: uint8 [ceil(count * bits / 8)].
        count: number of integers.
        bits: 1 to 8.
        signed: whether they are in two's complement.

    Returns:
        int16 [count].
    """
    stream = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little")
    flat = np.packbits(stream.reshape(-1, bits), axis=1, bitorder="little")[:, 0]
    integers = flat.astype(np.int16)
    if signed:
        integers -= (integers >> (bits - 1)) << bits
    return torch.from_numpy(integers)
