"""The quantization schemes: what is quantized, how, and with how many bits."""

from dataclasses import dataclass

from zscgan_ext.config.configs import QuantizationConfig
from zscgan_ext.config.values import parse_bits

BITS_OF_FIRST_AND_LAST = 8


@dataclass(frozen=True)
class QuantRange:
    """The integers that one quantizer may use."""

    quant_min: int
    quant_max: int

    @property
    def bits(self) -> int:
        """The width that holds them all."""
        return (self.quant_max - self.quant_min).bit_length()

    @property
    def signed(self) -> bool:
        """Whether some are negative."""
        return self.quant_min < 0


def unsigned_range(bits: int) -> QuantRange:
    """Return 0 to 2^bits - 1."""
    return QuantRange(0, 2**bits - 1)


def signed_range(bits: int) -> QuantRange:
    """Return -2^(bits - 1) to 2^(bits - 1) - 1."""
    return QuantRange(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def symmetric_range(bits: int) -> QuantRange:
    """Return -(2^(bits - 1) - 1) to 2^(bits - 1) - 1: as many steps on both sides of zero."""
    largest = 2 ** (bits - 1) - 1
    return QuantRange(-largest, largest)


@dataclass(frozen=True)
class Scheme:
    """Where quantizers stand and what they are.

    `paper` is what published tables of data-free quantization use (GDFQ, Xu et al., 2020): weights
    per output channel, asymmetric, by their minimum and maximum; activations per tensor after
    ReLU and ReLU6 only; batch norm kept; one width everywhere.

    `deploy` is what an int8 runtime executes: batch norm folded; weights per output channel,
    symmetric, with learned scales; every activation tensor that a runtime quantizes; eight bits in
    the first and last layer.

    `symmetric` is `deploy` for TensorRT: every activation has the zero point 0, and quantized is
    only what layers read, and what is added to the result of a layer.
    """

    name: str
    weight_bits: int
    activation_bits: int

    @property
    def folds_batch_norm(self) -> bool:
        """Whether batch norm becomes part of the convolution before it."""
        return self.name != "paper"

    @property
    def quantizes_only_rectifiers(self) -> bool:
        """Whether of the activations only the results of ReLU and ReLU6 are quantized."""
        return self.name == "paper"

    @property
    def symmetric_activations(self) -> bool:
        """Whether the zero point of every activation is 0."""
        return self.name == "symmetric"

    @property
    def steps(self) -> int:
        """The number of quantization steps, of weights or activations where they have fewer."""
        return int(2 ** min(self.weight_bits, self.activation_bits)) - 1

    @property
    def symmetric_weights(self) -> bool:
        """Whether weights have symmetric learned scales, not asymmetric minimum and maximum."""
        return self.name != "paper"

    def weight_range(self, is_first_or_last: bool) -> QuantRange:
        """Return the integers of a layer's weights."""
        bits = self.bits_of(self.weight_bits, is_first_or_last)
        return symmetric_range(bits) if self.symmetric_weights else unsigned_range(bits)

    def activation_range(self, is_first_or_last: bool) -> QuantRange:
        """Return the integers of an activation tensor that some layer reads."""
        return self.range_of_activations(self.bits_of(self.activation_bits, is_first_or_last))

    def range_of_activations(self, bits: int) -> QuantRange:
        """Return the integers of activations of a width."""
        return signed_range(bits) if self.symmetric_activations else unsigned_range(bits)

    def bits_of(self, bits: int, is_first_or_last: bool) -> int:
        """Return the width in a layer, given that of layers in the middle."""
        return BITS_OF_FIRST_AND_LAST if is_first_or_last and self.name != "paper" else bits


def scheme_of(config: QuantizationConfig) -> Scheme:
    """Return the scheme of a configuration, with its widths.

    Raises:
        InputError: if the bit widths are not such as `w4a4`.
    """
    name = "symmetric" if config.target == "tensorrt" else config.scheme
    return Scheme(name, *parse_bits(config.bits))
