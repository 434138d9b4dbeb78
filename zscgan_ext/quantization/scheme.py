"""The quantization schemes: what is quantized, how, and with how many bits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from zscgan_ext.config.configs import QuantizationConfig
from zscgan_ext.config.values import LayerBits, parse_bits

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
    """Return -(2^(bits - 1) - 1) to 2^(bits - 1) - 1: as many steps on both sides of zero.

    Of two bits that would leave three integers; all four are used, -2 to 1, as in LSQ.
    """
    if bits == 2:
        return signed_range(bits)
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

    In both, layers can have widths of their own, or stay in floats: `layers`, by their names in the
    graph. What such a layer reads has the most bits that any of those that read it asks for.
    `symmetric` is `deploy` for TensorRT: every activation has the zero point 0, and quantized is
    only what layers read, and what is added to the result of a layer.
    """

    name: str
    weight_bits: int
    activation_bits: int
    layers: Mapping[str, LayerBits] = field(default_factory=dict)

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

    @property
    def fewest_weight_bits(self) -> int:
        """The narrowest width of weights that may be."""
        own = [bits.weights for bits in self.layers.values() if bits.weights is not None]
        return min(self.weight_bits, *own) if own else self.weight_bits

    def is_float(self, layer: str) -> bool:
        """Return True if a layer stays in floats."""
        return layer in self.layers and self.layers[layer].weights is None

    def weight_range(self, layer: str, is_first_or_last: bool) -> QuantRange:
        """Return the integers of a layer's weights."""
        own = self.layers[layer].weights if layer in self.layers else None
        return self.range_of_weights(own or self.bits_of(self.weight_bits, is_first_or_last))

    def range_of_weights(self, bits: int) -> QuantRange:
        """Return the integers of weights of a width."""
        return symmetric_range(bits) if self.symmetric_weights else unsigned_range(bits)

    def activation_range(self, readers: Iterable[str], is_first_or_last: bool) -> QuantRange:
        """Return the integers of an activation tensor.

        Args:
            readers: names of the layers that read it.
            is_first_or_last: whether the first or last layer is among them.
        """
        usual = self.bits_of(self.activation_bits, is_first_or_last)
        own = [self.layers[name].activations for name in readers if name in self.layers]
        return self.range_of_activations(max((bits or usual for bits in own), default=usual))

    def range_of_activations(self, bits: int) -> QuantRange:
        """Return the integers of activations of a width."""
        return signed_range(bits) if self.symmetric_activations else unsigned_range(bits)

    def bits_of(self, bits: int, is_first_or_last: bool) -> int:
        """Return the width in a layer, given that of layers in the middle."""
        return BITS_OF_FIRST_AND_LAST if is_first_or_last and self.name != "paper" else bits


def usual_bits(config: QuantizationConfig) -> int:
    """Return the width nearest to the average of a budget."""
    return max(2, round(config.average_weight_bits))


def scheme_of(config: QuantizationConfig, layers: Mapping[str, LayerBits] | None = None) -> Scheme:
    """Return the scheme of a configuration, with its widths.

    Args:
        config: of the quantization.
        layers: widths of single layers, by their names in the graph.

    Raises:
        InputError: if the bit widths are not such as `w4a4`.
    """
    weight_bits, activation_bits = parse_bits(config.bits)
    name = "symmetric" if config.target == "tensorrt" else config.scheme
    # Where a budget decides, every layer has a width of its own; steps are those of the average.
    return Scheme(name, weight_bits or usual_bits(config), activation_bits, layers or {})
