"""Widths of single layers: those that patterns of names give, and those that a budget leaves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, fx, nn

from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.classifiers.normal_form.functional_layers import name_in_model
from zscgan_ext.config.configs import QuantizationConfig
from zscgan_ext.config.values import LayerBits, parse_layer_bits, parse_layer_pattern
from zscgan_ext.errors import InputError, did_you_mean, some_of
from zscgan_ext.quantization.bit_budget import choose_widths
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import QUANTIZED_LAYERS, is_depthwise

NARROWEST = 2  # bits


def layer_names(graph: fx.GraphModule) -> dict[str, str]:
    """Return the layers to quantize, by their names in a graph; values are the model's names.

    Args:
        graph: in normal form.
    """
    targets = [
        str(node.target)
        for node in graph.graph.nodes
        if isinstance(module_of(graph, node), QUANTIZED_LAYERS)
    ]
    return {target: name_in_model(graph, target) for target in targets}


def given_layer_bits(config: QuantizationConfig, names: Mapping[str, str]) -> dict[str, LayerBits]:
    """Return the widths that patterns give to layers, by the names of these in the graph.

    Args:
        config: has the patterns.
        names: of the layers in the model, by those in the graph.

    Raises:
        InputError: if a pattern matches no layer.
    """
    patterns = [("layer_bits", *parse_layer_pattern(text)) for text in config.layer_bits or ()]
    patterns += [("keep_float", pattern, LayerBits(None)) for pattern in config.keep_float or ()]
    given: dict[str, LayerBits] = {}
    for setting, pattern, bits in patterns:
        matching = [target for target, name in names.items() if matches(name, pattern)]
        if not matching:
            raise InputError(f"{setting}: {pattern!r} matches no layer{hint(pattern, names)}")
        given |= dict.fromkeys(matching, bits)
    return given


def matches(name: str, pattern: str) -> bool:
    """Return True if a pattern matches the name of a layer, or of a module that holds it."""
    return any(fnmatchcase(each, pattern) for each in paths(name))


def paths(name: str) -> list[str]:
    """Return the names of a layer and of the modules that hold it, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def hint(pattern: str, names: Mapping[str, str]) -> str:
    """Return names near a pattern, or else some names that there are."""
    known: Iterable[str] = dict.fromkeys(path for name in names.values() for path in paths(name))
    near = did_you_mean(pattern, known)
    return near or f"; there are {some_of(list(names.values()))}"


# ---- a budget -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What is left to decide about: layers without a given width, and the bits they may take."""

    counts: Mapping[str, int]  # weights, by the names of layers in the graph
    bits: int

    def widths(self, losses: Mapping[str, Mapping[int, float]]) -> dict[str, LayerBits]:
        """Return the widths with the least loss in all, given that of each layer by width."""
        names = list(self.counts)
        counts = [self.counts[name] for name in names]
        widths = choose_widths(counts, [losses[name] for name in names], self.bits)
        return {name: LayerBits(width) for name, width in zip(names, widths, strict=True)}


def budget_of(config: QuantizationConfig, student: QuantizedClassifier) -> Budget:
    """Return what the average of all quantized weights leaves to layers without a given width.

    Args:
        config: has the average.
        student: converted with the widths that are given.

    Raises:
        InputError: if given widths leave less than the narrowest ones take.
    """
    counts = weight_counts(student)
    given = {name: bits.weights for name, bits in student.scheme.layers.items()}
    taken = sum(counts[name] * bits for name, bits in given.items() if bits is not None)
    free = {name: count for name, count in counts.items() if name not in given}
    left = int(config.average_weight_bits * sum(counts.values()) + 1e-6) - taken
    least = NARROWEST * sum(free.values())
    if left < least:
        lowest = (taken + least) / sum(counts.values())
        raise InputError(
            f"average_weight_bits: {config.average_weight_bits:g} is below {lowest:.3g}, which "
            f"given widths of layers and {NARROWEST} bits in all others have"
        )
    return Budget(free, left)


def weight_counts(student: QuantizedClassifier) -> dict[str, int]:
    """Return the number of weights of each quantized layer."""
    return {name: layer.layer.weight.numel() for name, layer in student.named_layers().items()}


def described_widths(
    student: QuantizedClassifier, losses: Mapping[str, Mapping[int, float]] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the width of each layer, how many weights it has, and what each width would lose.

    Args:
        student: whose layers are described, by their names in the graph.
        losses: KL divergence of the logits by layer and width, where they were measured.
    """
    described: dict[str, dict[str, Any]] = {}
    named = student.named_layers()
    for name, bits in student.scheme.layers.items():
        if bits.weights is None:
            layer = student.graph.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            described[name] = {"bits": str(bits), "weights": layer.weight.numel()}
    for name, count in weight_counts(student).items():
        own = student.scheme.layers.get(name) or LayerBits(named[name].quant_range.bits)
        described[name] = {"bits": str(own), "weights": count}
        if losses is not None and name in losses:
            described[name]["divergence"] = {str(w): x for w, x in losses[name].items()}
    order = [str(node.target) for node in student.graph.graph.nodes]
    return dict(sorted(described.items(), key=lambda item: order.index(item[0])))


def two_bit_warnings(student: QuantizedClassifier) -> list[str]:
    """Return a line if weights have a width that costs a network like this one very much.

    Depthwise convolutions have few weights for each output, whose errors do not average out. In
    `paper` the integers follow the minimum and maximum of each channel, and do better.
    """
    layers = [each.layer for each in student.layers if isinstance(each.layer, nn.Conv2d)]
    is_narrow = student.scheme.weight_bits == NARROWEST and student.scheme.symmetric_weights
    if not is_narrow or not any(map(is_depthwise, layers)):
        return []
    return [
        "bits: weights of 2 bits cost a network with depthwise convolutions several times what 3 "
        "bits do, and without fine-tuning nearly all of its accuracy; take 3 or more, as in w3a3, "
        "for all layers or by --layer-bits"
    ]


def average_width(described: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the mean width of all quantized weights, given what `described_widths` returns."""
    bits = count = 0
    for each in described.values():
        width = parse_layer_bits(each["bits"]).weights
        if width is not None:
            bits += width * int(each["weights"])
            count += int(each["weights"])
    return bits / count if count else None


def widths_described(described: Mapping[str, Mapping[str, Any]]) -> dict[str, LayerBits]:
    """Return the widths in what `described_widths` returns."""
    return {name: parse_layer_bits(each["bits"]) for name, each in described.items()}
