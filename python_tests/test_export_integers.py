"""The integers of quantized weights: what they stand for, and their packing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import RGB8, small_residual
from torch import nn

from zscgan_ext.export.integers import integer_weight, pack, unpack
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.quantizers import QuantizedLayer
from zscgan_ext.quantization.scheme import Scheme, symmetric_range, unsigned_range


@st.composite
def widths_and_integers(draw):
    bits, signed = draw(st.integers(1, 8)), draw(st.booleans())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return bits, signed, draw(st.lists(st.integers(low, high), max_size=40))


@given(widths_and_integers())
def test_packing_is_one_large_integer_in_little_endian(case):
    bits, signed, values = case
    whole = sum((value % 2**bits) << (bits * index) for index, value in enumerate(values))
    expected = whole.to_bytes(-(-len(values) * bits // 8), "little")
    packed = pack(torch.tensor(values, dtype=torch.int16), bits)
    assert bytes(packed.tolist()) == expected
    assert unpack(packed, len(values), bits, signed).tolist() == values


def test_two_integers_of_four_bits_share_a_byte():
    assert pack(torch.tensor([1, -2, 7], dtype=torch.int16), 4).tolist() == [0xE1, 0x07]


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_range_knows_its_width(bits):
    assert symmetric_range(bits).bits == unsigned_range(bits).bits == bits
    assert symmetric_range(bits).signed
    assert not unsigned_range(bits).signed


def test_symmetric_ranges_leave_out_the_lowest_integer_but_of_two_bits():
    ranges = {bits: symmetric_range(bits) for bits in (8, 4, 3, 2)}
    found = {bits: (own.quant_min, own.quant_max) for bits, own in ranges.items()}
    assert found == {8: (-127, 127), 4: (-7, 7), 3: (-3, 3), 2: (-2, 1)}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scheme", ["deploy", "paper"])
def test_integers_stand_for_the_weights_that_the_student_computes_with(scheme, bits):
    student = convert(small_residual(), Scheme(scheme, bits, 8), RGB8.shape)
    for layer, quantized in zip(student.layers, student.quantize_weights(), strict=True):
        weight = integer_weight(layer)
        assert torch.equal(weight.dequantize(), quantized)
        assert weight.integers.min() >= layer.quant_range.quant_min
        assert weight.integers.max() <= layer.quant_range.quant_max
        assert weight.integers.unique().numel() > 1


def test_a_channel_of_zeros_is_zeros():
    layer = nn.Linear(4, 2)
    layer.weight.data[0] = 0
    quantized = QuantizedLayer(layer, symmetric_range(8), symmetric=True)
    weight = integer_weight(quantized).dequantize()
    assert torch.equal(weight[0], torch.zeros(4))
    assert weight.isfinite().all()
