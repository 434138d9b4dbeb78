"""The two quantization schemes: what is quantized, how, and with how many bits."""

from dataclasses import dataclass

from zscgan_ext.config.configs import QuantizationConfig
from zscgan_ext.config.values import parse_bits

BITS_OF_FIRST_AND_LAST = 8


@dataclass(frozen=True)
class IntegerRange:
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


def unsigned_range(bits: int) -> IntegerRange:
    """Return 0 to 2^bits - 1."""
    return IntegerRange(0, 2**bits - 1)


def symmetric_range(bits: int) -> IntegerRange:
    """Return -(2^(bits - 1) - 1) to 2^(bits - 1) - 1: as many steps on both sides of zero."""
    largest = 2 ** (bits - 1) - 1
    return IntegerRange(-largest, largest)


@dataclass(frozen=True)
class Scheme:
    """Where quantizers stand and what they are.

    `paper` is what published tables of data-free quantization use (GDFQ, Xu et al., 2020): weights
    per output channel, asymmetric, by their minimum and maximum; activations per tensor after
    ReLU and ReLU6 alone; batch norm kept; one width everywhere.

    `deploy` is what an int8 runtime executes: batch norm folded; weights per output channel,
    symmetric, with learned scales; every activation tensor that a runtime quantizes; eight bits in
    the first and last layer.
    """

    name: str
    weight_bits: int
    activation_bits: int

    @property
    def folds_batch_norm(self) -> bool:
        """Whether batch norm becomes part of the convolution before it."""
        return self.name == "deploy"

    @property
    def quantizes_every_activation(self) -> bool:
        """Whether more than the results of ReLU and ReLU6 is quantized."""
        return self.name == "deploy"

    @property
    def steps(self) -> int:
        """The number of quantization steps, of weights or activations where they have fewer."""
        return int(2 ** min(self.weight_bits, self.activation_bits)) - 1

    @property
    def symmetric_weights(self) -> bool:
        """Whether weights have symmetric learned scales, not asymmetric minimum and maximum."""
        return self.name == "deploy"

    def bits_at_ends(self, bits: int) -> int:
        """Return the width of the first and last layer, given the width of the others."""
        return BITS_OF_FIRST_AND_LAST if self.name == "deploy" else bits

    def weight_range(self, at_an_end: bool) -> IntegerRange:
        """Return the integers of a layer's weights."""
        bits = self.bits_at_ends(self.weight_bits) if at_an_end else self.weight_bits
        return symmetric_range(bits) if self.symmetric_weights else unsigned_range(bits)

    def activation_range(self, at_an_end: bool) -> IntegerRange:
        """Return the integers of an activation tensor."""
        bits = self.bits_at_ends(self.activation_bits) if at_an_end else self.activation_bits
        return unsigned_range(bits)


def scheme_of(config: QuantizationConfig) -> Scheme:
    """Return the scheme of a configuration, with its widths.

    Raises:
        InputError: if the widths are none.
    """
    return Scheme(config.scheme, *parse_bits(config.bits))
