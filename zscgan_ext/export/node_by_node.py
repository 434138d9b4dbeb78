"""Comparing a student with what a runtime computed, node by node, on its integers."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx

from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.errors import InputError
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer

# How far from the middle between two integers a value may lie, in steps, to count as a tie.
TIE = 0.01
# Where no quantized value stands before the last layer, logits differ by less than this part.
FLOAT_ERROR = 1e-4
BATCHES_BY_NODE = 4  # that are enough to compare node by node

# Gives what a runtime computes of images: the integers of each activation quantizer, by its name in
# the student's graph, and the logits.
Compute = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


def compare_with_runtime(
    student: QuantizedClassifier, runtime: str, compute: Compute, batches: Iterable[Tensor]
) -> tuple[int, float, float]:
    """Compare node by node.

    Args:
        student: calibrated, on the CPU.
        runtime: its name, for messages.
        compute: what it computes.
        batches: normalized images [N, C, H, W].

    Returns:
        the number of ties, the largest difference of a logit, and how much larger logits are than
        the results of the last layer, which a classifier may scale.

    Raises:
        InputError: naming the first node whose integers differ by more than ties.
    """
    ties, differences, gain = 0, [], 0.0
    with student.quantized_weights():
        for images in batches:
            integers, logits = compute(images)
            follower = Follower(student, integers, runtime)
            expected = follower.run(images)
            ties += follower.ties
            differences.append((expected - logits).abs().max())
            if follower.largest_of_last_layer > 0:
                gain = max(gain, float(expected.abs().max()) / follower.largest_of_last_layer)
    return ties, float(torch.stack(differences).max()), gain  # NaN if a difference is


def allowed_difference(student: QuantizedClassifier, gain: float, expected: Tensor) -> float:
    """Return one step of the last layer's products, in the logits' scale.

    Args:
        student: calibrated.
        gain: as `compare_with_runtime` gives it.
        expected: logits of the student.
    """
    return gain * product_step(student) or FLOAT_ERROR * float(expected.abs().max())


def product_step(student: QuantizedClassifier) -> float:
    """Return one step of what the last layer sums: input scale times the largest weight scale.

    0 where no activation is quantized.
    """
    input_scale = step = 0.0
    for node in student.graph.graph.nodes:
        module = module_of(student.graph, node)
        if isinstance(module, ActivationQuantizer):
            input_scale = float(module.qparams().scale)
        elif isinstance(module, QuantizedLayer):
            step = input_scale * float(module.qparams().scale.max())
    return step


class Follower(fx.Interpreter):
    """Runs a student on the integers that a runtime gave, and compares them with its own.

    Args:
        student: calibrated.
        integers: of each activation quantizer, by its name in the graph.
        runtime: its name, for messages.
    """

    def __init__(
        self, student: QuantizedClassifier, integers: dict[str, Tensor], runtime: str
    ) -> None:
        super().__init__(student.graph)
        self.runtime = runtime
        self.extra_traceback = False  # which would make several lines of an error
        self.integers = integers
        self.ties = 0
        self.largest_of_last_layer = 0.0

    def run_node(self, n: fx.Node) -> object:
        """Run one node; for a quantizer, give what the runtime gave.

        Raises:
            InputError: if the integers of a quantizer differ by more than ties.
        """
        quantizer = module_of(self.module, n)  # type: ignore[arg-type]
        if not isinstance(quantizer, ActivationQuantizer):
            result = super().run_node(n)
            if isinstance(quantizer, QuantizedLayer):
                self.largest_of_last_layer = float(result.abs().max())
            return result
        (x, *others), _ = self.fetch_args_kwargs_from_env(n)
        scale, zero_point = quantizer.qparams()
        integers = self.integers[str(n.target)].reshape(x.shape)  # a runtime may reshape before
        found = (integers.float() - zero_point) * scale
        margin = TIE * scale
        below, own, above = (quantizer(x + shift, *others) for shift in (-margin, 0, margin))
        tolerance = scale / 2  # between one integer and the next
        wrong = (found < below - tolerance) | (found > above + tolerance) | found.isnan()
        if bool(wrong.any()):
            steps = ((found - own).abs() / scale).max()
            raise InputError(
                f"export: the first node that differs is {n.target}: {self.runtime} gives other "
                f"integers in {100 * float(wrong.float().mean()):.2g} % of its elements, "
                f"by up to {float(steps):.0f}"
            )
        self.ties += int(((found - own).abs() > tolerance).sum())
        return found
