"""Nodes of a traced graph, one by one, as calls of the operators of the normal form."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from zscgan_ext.classifiers.graph import put_value
from zscgan_ext.classifiers.in_place import argument
from zscgan_ext.classifiers.operators import (
    ASSERTIONS,
    CASTING,
    DROPOUTS,
    OPERATORS,
    PERMUTING,
    RESHAPING,
    SPLITTING,
    SYNONYMS,
    name_of,
)
from zscgan_ext.classifiers.trials import TensorFacts, Varying
from zscgan_ext.errors import InputError

# Options that say how something is computed, not what.
WITHOUT_MEANING = {
    "out",
    "inplace",
    "_stacklevel",
    "memory_format",
    "copy",
    "non_blocking",
    "implicit",
    "return_indices",
}
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


class Rewriter:
    """Turns the nodes of a graph, in their order, into calls of the operators of the normal form.

    What is no such operator is left as it is.

    Args:
        graph: changed in place; no node overwrites what later ones take.
        results: what a trial run gave for every node.
    """

    def __init__(self, graph: fx.GraphModule, results: Mapping[fx.Node, Any]) -> None:
        self.graph = graph.graph
        self.results = dict(results)

    def rewrite(self, node: fx.Node) -> None:
        """Rewrite one node."""
        if node.op not in ("call_function", "call_method"):
            return
        name = str(node.args[1]) if node.target is getattr else name_of(node.target) or ""
        if name in ASSERTIONS:
            self.graph.erase_node(node)
            return
        if node.kwargs.get("out") is not None:
            raise InputError(f"classifier: {node.name} writes into a tensor that it is given")
        result = self.results[node]
        if is_fixed(result):
            self.put_value(node, result)
            return
        if isinstance(result, Varying):
            return
        rule = RULES.get(name)
        if rule is not None:
            rule(self, node, name)
        elif name in OPERATORS:
            self.call_operator(node, name)

    # ---- changing nodes -------------------------------------------------------------------------

    def set(self, node: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Let a node call a function."""
        node.op, node.target = "call_function", function
        node.args, node.kwargs = args, kwargs

    def insert(self, node: fx.Node, function: Callable[..., Any], *args: Any, **kw: Any) -> fx.Node:
        """Add a call of a function before a node."""
        with self.graph.inserting_before(node):
            return self.graph.call_function(function, args, kw)

    def replace(self, node: fx.Node, by: Any) -> None:
        """Let the users of a node take another one."""
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)

    def put_value(self, node: fx.Node, value: Any) -> None:
        """Let the users of a node take a value."""
        put_value(node, value)
        self.graph.erase_node(node)

    # ---- asking ---------------------------------------------------------------------------------

    def facts(self, node: Any) -> TensorFacts | None:
        """Return what is known of a tensor that a node gave; None for anything else."""
        found = self.results.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, TensorFacts) else None

    def arguments(self, node: fx.Node, name: str) -> dict[str, Any]:
        """Return the arguments of a node by the names that its operator gives them."""
        return OPERATORS[name].bind(node.args, node.kwargs)

    # ---- operators ------------------------------------------------------------------------------

    def call_operator(self, node: fx.Node, name: str) -> None:
        """Call the operator of this name with its inputs by position and options by name."""
        called = OPERATORS[name]
        bound = called.bind(node.args, node.kwargs)
        facts = self.facts(node)
        if facts is not None and bound.get("dtype") in (None, facts.dtype):
            bound.pop("dtype", None)
        inputs = [bound.pop(key, None) for key in called.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        kept = {k: v for k, v in bound.items() if k not in WITHOUT_MEANING and v is not None}
        self.set(node, called.function, *inputs, **kept)


def is_fixed(result: Any) -> bool:
    """Return True if a result is no tensor, holds none, and does not depend on the images."""
    if isinstance(result, list):
        return all(map(is_fixed, result))
    return not isinstance(result, TensorFacts | Varying)


def free_size(sizes: Sequence[int | None]) -> list[int] | None:
    """Return a shape with -1 where a size depends on the number of images; None for several."""
    if sum(size is None for size in sizes) > 1:
        return None
    return [-1 if size is None else size for size in sizes]


def reshape(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give the shape that a trial run gave."""
    facts = rewriter.facts(node)
    shape = None if facts is None else free_size(facts.sizes)
    if shape is not None and 0 not in shape:
        rewriter.set(node, torch.reshape, node.args[0], shape=shape)


def permute(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give the order of dimensions, which a tensor with a size of its own in each one shows."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    facts = rewriter.facts(source)
    if facts is None or any(isinstance(a, fx.Node) for a in (*node.args[1:],)):
        return
    probe = torch.empty([2 + index for index in range(len(facts.sizes))], device="meta")
    rest = node.args[1:] if node.args else ()
    keywords = {key: value for key, value in node.kwargs.items() if key != "input"}
    if node.op == "call_method":
        moved = getattr(probe, str(node.target))(*rest, **keywords)
    else:
        assert callable(node.target)
        moved = node.target(probe, *rest, **keywords)
    rewriter.set(node, torch.permute, source, dims=[size - 2 for size in moved.shape])


def split(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give the sizes of the parts, as a trial run gave them."""
    bound = named(node, "input", "sizes", "dim")
    source = bound.get("input", bound.get("tensor"))
    parts, dim = rewriter.results[node], bound.get("dim", 0)
    sizes = [part.sizes[dim] for part in parts if isinstance(part, TensorFacts)]
    if None not in sizes and len(sizes) == len(parts):
        rewriter.set(node, torch.split, source, split_size_or_sections=sizes, dim=dim)


def cast(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Pass the input on where the dtype stays; copies and devices mean nothing here."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    before, after = rewriter.facts(source), rewriter.facts(node)
    if before is None or after is None:
        return
    if before == after:
        rewriter.replace(node, source)
    elif before.sizes == after.sizes:
        rewriter.set(node, torch.Tensor.to, source, dtype=after.dtype)


def drop_out(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Pass the input on where nothing is dropped."""
    if isinstance(node.target, torch._ops.OpOverload):
        probability, training = node.args[1:3]
    else:
        probability = argument(node, "p", 0.5)
        training = argument(node, "training", True)
    if training is False or probability == 0:
        rewriter.replace(node, node.args[0] if node.args else node.kwargs["input"])


def clamp(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Clamp; what is a ReLU or a ReLU6 is called so."""
    keywords = dict(node.kwargs)
    source = node.args[0] if node.args else keywords.pop("input", keywords.pop("self", None))
    given = dict(zip(BOUNDS[name], node.args[1:], strict=False)) | keywords
    set_bounds(rewriter, node, source, given.get("min"), given.get("max"))


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
    """Tell apart what `max` and `min` are: over dimensions, of all elements, or of two tensors."""
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
    if bound.get("rounding_mode") is not None:
        return
    first, second = bound["input"], bound["other"]
    factor = bound.get("alpha", 1)
    if name == "rsub":
        name, first, second = "sub", second, first
    if factor != 1:
        second = rewriter.insert(node, operator.mul, second, factor)
    rewriter.set(node, OPERATORS[name].function, first, second)


def square(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Take the second power."""
    rewriter.set(node, operator.pow, rewriter.arguments(node, name)["input"], 2)


def expand(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Repeat along dimensions of size one, to the shape that a trial run gave."""
    facts, source = rewriter.facts(node), rewriter.facts(node.args[0])
    if facts is None or source is None:
        return
    added = len(facts.sizes) - len(source.sizes)
    before = (*[1] * added, *source.sizes)
    if any(a is None and b is not None for a, b in zip(facts.sizes, before, strict=True)):
        return  # the number of images is not known
    if facts == source:
        rewriter.replace(node, node.args[0])
        return
    sizes = [-1 if size is None else size for size in facts.sizes]
    rewriter.set(node, torch.broadcast_to, node.args[0], size=sizes)


def repeat(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Repeat a tensor along its dimensions."""
    bound = rewriter.arguments(node, name)
    repeats = bound.get("dims", bound.get("repeats", ()))
    if not any(isinstance(count, fx.Node) for count in repeats):
        rewriter.set(node, torch.tile, bound["input"], dims=list(repeats))


def select(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Take one of a dimension by its index."""
    bound = named(node, "input", "dim", "index")
    index_dimension(rewriter, node, bound["input"], bound["dim"], bound["index"])


def narrow(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Take a part of a dimension by its start and length."""
    bound = named(node, "input", "dim", "start", "length")
    start, length = bound["start"], bound["length"]
    if isinstance(start, int) and isinstance(length, int):
        end = start + length
        part = slice(start, None if start < 0 and end == 0 else end)
        index_dimension(rewriter, node, bound["input"], bound["dim"], part)


def cut(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Take a part of a dimension by its start, end and step."""
    bound = named(node, "input", "dim", "start", "end", "step")
    part = part_of(bound)
    if part == slice(None):
        rewriter.replace(node, bound["input"])
    else:
        index_dimension(rewriter, node, bound["input"], bound.get("dim", 0), part)


def part_of(bound: Mapping[str, Any]) -> slice:
    """Return the slice that an operator's start, end and step are."""
    start, end, step = bound.get("start"), bound.get("end"), bound.get("step", 1)
    end = None if end == torch.iinfo(torch.int64).max else end
    return slice(start or None, end, None if step == 1 else step)


def index_dimension(rewriter: Rewriter, node: fx.Node, source: Any, dim: Any, part: Any) -> None:
    """Index one dimension of a tensor."""
    facts = rewriter.facts(source)
    if facts is not None and not isinstance(part, fx.Node):
        whole = (slice(None),) * (dim % len(facts.sizes))
        rewriter.set(node, operator.getitem, source, (*whole, part))


def put_slice(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Join what stays of a tensor with the part that takes the place of the rest."""
    bound = named(node, "input", "src", "dim", "start", "end", "step")
    part = part_of(bound)
    if part.step is None:
        put_part(rewriter, node, bound, bound["src"], part)


def put_one(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Put one of a dimension in its place."""
    bound = named(node, "input", "src", "dim", "index")
    facts, index = rewriter.facts(node), bound["index"]
    if facts is None or not isinstance(index, int):
        return
    sizes = list(facts.sizes)
    sizes[bound["dim"]] = 1
    shape = free_size(sizes)
    if shape is not None:
        source = rewriter.insert(node, torch.reshape, bound["src"], shape=shape)
        end = None if index == -1 else index + 1
        put_part(rewriter, node, bound, source, slice(index, end))


def put_part(
    rewriter: Rewriter, node: fx.Node, bound: Mapping[str, Any], source: Any, part: slice
) -> None:
    """Let a node give a tensor in which a part of a dimension is `source`."""
    facts = rewriter.facts(node)
    dim = bound.get("dim", 0)
    size = None if facts is None else facts.sizes[dim]
    if facts is None or size is None:  # a part of the batch
        if part == slice(None):
            rewriter.replace(node, source)
        return
    start, end, _ = part.indices(size)
    whole = (slice(None),) * (dim % len(facts.sizes))
    pieces = [source]
    if start > 0:
        index = (*whole, slice(None, start))
        pieces.insert(0, rewriter.insert(node, operator.getitem, bound["input"], index))
    if end < size:
        index = (*whole, slice(end, None))
        pieces.append(rewriter.insert(node, operator.getitem, bound["input"], index))
    if len(pieces) == 1:
        rewriter.replace(node, source)
    else:
        rewriter.set(node, torch.cat, pieces, dim=dim)


def overwrite(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give values in the shape of the tensor that they overwrite."""
    source = named(node, "input", "src")["src"]
    facts, before = rewriter.facts(node), rewriter.facts(source)
    if facts == before:
        rewriter.replace(node, source)
    elif facts is not None and None not in facts.sizes[1:] and before is not None:
        zeros = rewriter.insert(node, operator.mul, node.args[0], 0.0)
        rewriter.set(node, operator.add, zeros, source)


def fill(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give a tensor of one value in the shape of another."""
    bound = named(node, "input", "value")
    zeros = rewriter.insert(node, operator.mul, bound["input"], 0.0)
    rewriter.set(node, operator.add, zeros, bound["value"])


def zero(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give a tensor of zeros in the shape of another."""
    rewriter.set(node, operator.mul, node.args[0], 0.0)


def named(node: fx.Node, *names: str) -> dict[str, Any]:
    """Return a node's arguments by these names, which are also those of its keywords."""
    keywords = {SYNONYMS.get(key, key): value for key, value in node.kwargs.items()}
    return dict(zip(names, node.args, strict=False)) | keywords


def random_leaky_relu(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Multiply negative values with the mean of the slopes, as without training."""
    bound = named(node, "input", "lower", "upper", "training")
    if not bound.get("training"):
        slope = (bound.get("lower", 1 / 8) + bound.get("upper", 1 / 3)) / 2
        rewriter.set(node, F.leaky_relu, bound["input"], negative_slope=slope)


def turned_round(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Turn one dimension round."""
    rewriter.set(node, torch.flip, node.args[0], dims=[1 if name == "fliplr" else 0])


def getitem(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Take one of several tensors, or a part of one."""
    rewriter.set(node, operator.getitem, *node.args)


def einsum(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give the operands one by one."""
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    rewriter.set(node, torch.einsum, equation, *operands)


Rule = Callable[[Rewriter, fx.Node, str], None]
RULES: dict[str, Rule] = {
    **dict.fromkeys(RESHAPING, reshape),
    **dict.fromkeys(PERMUTING, permute),
    **dict.fromkeys(SPLITTING, split),
    **dict.fromkeys(CASTING, cast),
    **dict.fromkeys(DROPOUTS, drop_out),
    **dict.fromkeys(BOUNDS, clamp),
    **dict.fromkeys(EXTREMA, extremum),
    **dict.fromkeys(WITH_INDICES, pool_maxima),
    **dict.fromkeys(("add", "sub", "rsub", "div", "mul"), arithmetic),
    "hardtanh": hardtanh,
    "square": square,
    "expand": expand,
    "broadcast_to": expand,
    "repeat": repeat,
    "select": select,
    "narrow": narrow,
    "slice": cut,
    "slice_scatter": put_slice,
    "select_scatter": put_one,
    "copy": overwrite,
    "fill": fill,
    "zero": zero,
    "getitem": getitem,
    "rrelu": random_leaky_relu,
    "fliplr": turned_round,
    "flipud": turned_round,
    "einsum": einsum,
}
