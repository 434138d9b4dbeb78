"""Quantizing a classifier in seconds, without a generator: its batch norms tell everything."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.quantization.batch_norm_samples import (
    BatchNormSampler,
    drawn_input,
    known_statistics,
)
from zscgan_ext.quantization.bias_correction import correct_bias
from zscgan_ext.quantization.calibration import cover_input
from zscgan_ext.quantization.output_error_ranges import (
    ActivationRecorder,
    set_ranges_by_output_error,
)
from zscgan_ext.quantization.quantized_classifier import (
    QuantizedClassifier,
    round_biases_to_int32,
)
from zscgan_ext.quantization.quantizers import QuantizedLayer
from zscgan_ext.quantization.second_moment_rounding import (
    covariance,
    input_columns,
    round_by_second_moments,
)
from zscgan_ext.quantization.squant import squant_weight


class InstantQuantizer(BatchNormSampler):
    """Quantizes each layer of a student when samples of its input come by.

    A layer is rounded, and its bias corrected, after its last call; samples are always those of
    float weights. The student is changed in place.
    """

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        layers = [module_of(self.graph_module, node) for node in self.graph_module.graph.nodes]
        self.calls_left = Counter(id(each) for each in layers if isinstance(each, QuantizedLayer))
        self.moments: dict[int, list[Tensor]] = {}
        return super().run(*args, **kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module, and quantize it."""
        module, (x, *_) = self.fetch_attr(target), args
        result = module(*args, **kwargs)
        if isinstance(module, QuantizedLayer):
            self.see_input(module, x, result)
        return result

    def see_input(self, layer: QuantizedLayer, x: Tensor, result: Tensor) -> None:
        """Take the moments of a layer's input; after its last call, quantize it."""
        columns = input_columns(layer.layer, x, self.rng)
        seen = self.moments.setdefault(id(layer), [])
        if columns is not None:
            seen.append(covariance(columns.float()))
        self.calls_left[id(layer)] -= 1
        if self.calls_left[id(layer)] == 0:
            moments = self.moments.pop(id(layer))
            layer.layer.weight.copy_(rounded_weight(layer, moments))
            correct_bias(layer, result, layer(x))


def rounded_weight(layer: QuantizedLayer, moments: list[Tensor]) -> Tensor:
    """Return a layer's weight on its grid: by second moments, or by SQuant where there are none."""
    if moments:
        return round_by_second_moments(layer, torch.stack(moments).mean(0))
    return squant_weight(layer)


@torch.no_grad()
def quantize_from_batch_norm(
    student: QuantizedClassifier, classifier: Classifier, rng: torch.Generator
) -> None:
    """Round the weights of a student, correct its biases and set its ranges, without any image.

    Args:
        student: converted from the classifier; changed in place.
        classifier: the float one, on the same device.
        rng: draws; on that device.

    Raises:
        InputError: if the classifier cannot be traced.
    """
    statistics = known_statistics(classifier.model, student)
    images = drawn_input(classifier.preprocessing, rng)
    recorder = ActivationRecorder(student, statistics, rng)
    set_ranges_by_output_error(student, recorder, images, classifier.head)
    InstantQuantizer(student, statistics, rng).run(images)
    cover_input(student, classifier.preprocessing.input_range())
    student.quantize_activations()
    round_biases_to_int32(student)
