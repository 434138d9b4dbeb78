"""How much the answer changes when the weights of one layer alone are quantized, without any image.

The classifier runs on samples that have the statistics of its batch norms
(`batch_norm_samples.py`). What gives them these statistics is kept as it was for float weights, so
that errors of a layer go on to the logits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.quantization.batch_norm_samples import (
    BatchNormSampler,
    Standardization,
    drawn_input,
    known_statistics,
)
from zscgan_ext.quantization.bias_correction import correct_bias
from zscgan_ext.quantization.fine_tuning import logit_divergence
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import QuantizedLayer
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.quantization.squant import squant_weight

WIDTHS = tuple(range(2, 9))


class FixedSampler(BatchNormSampler):
    """Standardizes results as in its first run, so that later ones can differ from it."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph for the first time."""
        self.fixed: dict[str, Standardization] = {}
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node's result, and standardize it as in the first run."""
        result = fx.Interpreter.run_node(self, n)
        known = self.statistics.get(n.name)
        if known is None:
            return result
        if n.name not in self.fixed:
            self.fixed[n.name] = self.standardization(result, known)
        return self.fixed[n.name](result)

    def run_from(self, node: fx.Node, results: dict[fx.Node, Any]) -> Any:
        """Run the graph from a node on; return what it gives.

        Args:
            node: the first that is run.
            results: of the nodes before it that are needed; left as they are.
        """
        own = dict(results)
        while node.op != "output":
            self.compute(node, own)
            node = node.next
        self.env = own
        return self.run_node(node)

    def compute(self, node: fx.Node, results: dict[fx.Node, Any]) -> None:
        """Add the result of a node to those before it, and drop those that it alone needed."""
        self.env = results
        results[node] = self.run_node(node)
        for used in self.user_to_last_uses.get(node, []):
            del results[used]


@torch.no_grad()
def layer_sensitivity(
    student: QuantizedClassifier,
    classifier: Classifier,
    rng: torch.Generator,
    widths: Sequence[int] = WIDTHS,
) -> dict[str, dict[int, float]]:
    """Return the KL divergence of the logits with one layer quantized, by layer and width.

    Weights are rounded by SQuant and the layer's mean output is kept; all else is in floats.

    Args:
        student: converted from the classifier, its quantizers off and its weights not yet rounded;
            the same afterwards.
        classifier: the float one, on the same device.
        rng: draws; on that device.
        widths: to measure, bits.

    Raises:
        InputError: if the classifier cannot be traced.
    """
    sampler = FixedSampler(student, known_statistics(classifier.model, student), rng)
    images = drawn_input(classifier.preprocessing, rng)
    logits = sampler.run(images)
    sampler.args_iter = iter([images])
    names = {layer: name for name, layer in student.named_layers().items()}
    found: dict[str, dict[int, float]] = {}
    results: dict[fx.Node, Any] = {}
    for node in student.graph.graph.nodes:
        layer = module_of(student.graph, node)
        if isinstance(layer, QuantizedLayer) and names[layer] not in found:
            found[names[layer]] = {}
            for width in widths:
                with quantized_alone(layer, width, student.scheme, results[node.args[0]]):
                    found_logits = sampler.run_from(node, results)
                    divergence = logit_divergence(found_logits, logits, 1, classifier.head)
                # A divergence below zero is what rounding of floats leaves of none.
                found[names[layer]][width] = max(0.0, float(divergence))
        sampler.compute(node, results)
    return found


@contextmanager
def quantized_alone(layer: QuantizedLayer, bits: int, scheme: Scheme, x: Tensor) -> Iterator[None]:
    """Let a layer compute with rounded weights for a while.

    Args:
        layer: with float weights.
        bits: of the weights.
        scheme: tells which integers these are.
        x: input of the layer, for which its mean output is kept.
    """
    rounded = QuantizedLayer(layer.layer, scheme.range_of_weights(bits), layer.symmetric)
    bias, before = layer.layer.bias, layer(x)
    kept = torch.zeros(0) if bias is None else bias.clone()
    layer.quantized_weight = squant_weight(rounded).to(before.dtype)
    try:
        correct_bias(layer, before, layer(x))
        yield
    finally:
        layer.quantized_weight = None
        if bias is not None:
            bias.copy_(kept)
