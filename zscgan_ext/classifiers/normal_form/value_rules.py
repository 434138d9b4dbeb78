"""Rules for values: arithmetic, bounds, extrema, pooling, and what is random in training only."""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from zscgan_ext.classifiers.normal_form.operators import OPERATORS
from zscgan_ext.classifiers.normal_form.rewriter import Rewriter, named, parameter_of

BOUNDS = {"clamp": ("min", "max"), "clamp_min": ("min",), "clamp_max": ("max",)}
WITH_INDICES = [
    f"{kind}_pool{dimensions}d{ending}"
    for kind in ("max", "adaptive_max")
    for dimensions in (1, 2, 3)
    for ending in ("", "_with_indices")
]
EXTREMA = {
    "max": (torch.amax, torch.maximum),
    "min": (torch.amin, torch.minimum),
}


def drop_out(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Pass the input on where nothing is dropped."""
    if isinstance(node.target, torch._ops.OpOverload):
        probability, training = node.args[1:3]
    else:
        probability = parameter_of(node, "p", 0.5)
        training = parameter_of(node, "training", True)
    if training is False or probability == 0:
        rewriter.replace(node, node.args[0] if node.args else node.kwargs["input"])


def clamp(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Clamp; what is a ReLU or a ReLU6 is called so."""
    bound = named(node, "input", *BOUNDS[name])
    set_bounds(rewriter, node, bound["input"], bound.get("min"), bound.get("max"))


def hardtanh(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Clamp between two bounds as `hardtanh` does, whose gradient at them is another."""
    bound = rewriter.arguments(node, name)
    low, high = bound.get("min_val", -1.0), bound.get("max_val", 1.0)
    if (low, high) == (0, 6):
        rewriter.set(node, F.relu6, bound["input"])
    elif low == 0 and high == math.inf:
        rewriter.set(node, F.relu, bound["input"])
    else:
        rewriter.set(node, F.hardtanh, bound["input"], min_val=low, max_val=high)


def set_bounds(rewriter: Rewriter, node: fx.Node, source: Any, low: Any, high: Any) -> None:
    """Let a node clamp `source`."""
    numbers = all(isinstance(bound, int | float) or bound is None for bound in (low, high))
    if numbers and low == 0 and high in (None, math.inf):
        rewriter.set(node, F.relu, source)
    elif numbers and (low, high) == (0, 6):
        rewriter.set(node, F.relu6, source)
    else:
        bounds = {"min": low, "max": high}
        given = {key: value for key, value in bounds.items() if value is not None}
        rewriter.set(node, torch.clamp, source, **given)


def extremum(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Separate what `max` and `min` are: over dimensions, of all elements, or of two tensors."""
    over_dimensions, of_two = EXTREMA[name]
    bound = rewriter.arguments(node, name)
    other = node.kwargs.get("other", bound.get("dim"))
    if isinstance(other, fx.Node):
        rewriter.set(node, of_two, bound["input"], other)
    elif isinstance(rewriter.results[node], list):  # values and indices
        takes = {user: taken(user) for user in node.users}
        if all(part in (0, "values") for part in takes.values()):
            options = {"dim": bound["dim"], "keepdim": bound.get("keepdim", False)}
            values = rewriter.insert(node, over_dimensions, bound["input"], **options)
            for user in takes:
                rewriter.replace(user, values)
            rewriter.graph.erase_node(node)
    else:
        rewriter.set(node, over_dimensions, bound["input"])


def pool_maxima(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Pool without the indices of the maxima, where nobody takes them."""
    plain = name.removesuffix("_with_indices")
    if isinstance(rewriter.results[node], list):
        if any(taken(user) != 0 for user in node.users):
            return
        for user in list(node.users):
            rewriter.replace(user, node)
    rewriter.call_operator(node, plain)


def taken(user: fx.Node) -> Any:
    """Return which of several results a node takes; None for one that takes all."""
    if user.op == "call_function" and user.target in (operator.getitem, getattr):
        return user.args[1]
    return None


def arithmetic(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Call an operator of Python; a factor of the second operand is multiplied before."""
    bound = rewriter.arguments(node, name)
    first, second = bound["input"], bound["other"]
    if bound.get("rounding_mode") is not None:
        rewriter.set(node, torch.div, first, second, rounding_mode=bound["rounding_mode"])
        return
    factor = bound.get("alpha", 1)
    if name == "rsub":
        name, first, second = "sub", second, first
    if factor != 1:
        second = rewriter.insert(node, operator.mul, second, factor)
    rewriter.set(node, OPERATORS[name].function, first, second)


def square(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Take the second power."""
    rewriter.set(node, operator.pow, rewriter.arguments(node, name)["input"], 2)


def random_leaky_relu(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Multiply negative values with the mean of the slopes, as without training."""
    bound = named(node, "input", "lower", "upper", "training")
    if not bound.get("training"):
        slope = (bound.get("lower", 1 / 8) + bound.get("upper", 1 / 3)) / 2
        rewriter.set(node, F.leaky_relu, bound["input"], negative_slope=slope)


def einsum(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give the operands one by one."""
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    rewriter.set(node, torch.einsum, equation, *operands)
