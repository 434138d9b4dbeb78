"""Which rule rewrites which operator of a traced graph into the normal form."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from zscgan_ext.classifiers.normal_form import indexing_rules as indexing
from zscgan_ext.classifiers.normal_form import shape_rules as shapes
from zscgan_ext.classifiers.normal_form import value_rules as values
from zscgan_ext.classifiers.normal_form.operators import (
    ASSERTIONS,
    CASTING,
    DROPOUTS,
    OPERATORS,
    PERMUTING,
    RESHAPING,
    SPLITTING,
    name_of,
)
from zscgan_ext.classifiers.normal_form.rewriter import Rewriter, is_fixed
from zscgan_ext.classifiers.trials import Varying
from zscgan_ext.errors import InputError

Rule = Callable[[Rewriter, fx.Node, str], None]
RULES: dict[str, Rule] = {
    **dict.fromkeys(RESHAPING, shapes.reshape),
    **dict.fromkeys(PERMUTING, shapes.permute),
    **dict.fromkeys(SPLITTING, shapes.split),
    **dict.fromkeys(CASTING, shapes.cast),
    **dict.fromkeys(DROPOUTS, values.drop_out),
    **dict.fromkeys(values.BOUNDS, values.clamp),
    **dict.fromkeys(values.EXTREMA, values.extremum),
    **dict.fromkeys(values.WITH_INDICES, values.pool_maxima),
    **dict.fromkeys(("add", "sub", "rsub", "div", "mul"), values.arithmetic),
    "hardtanh": values.hardtanh,
    "square": values.square,
    "expand": shapes.expand,
    "broadcast_to": shapes.expand,
    "repeat": shapes.repeat,
    "select": indexing.select,
    "narrow": indexing.narrow,
    "slice": indexing.cut,
    "slice_scatter": indexing.put_slice,
    "select_scatter": indexing.put_one,
    "copy": indexing.overwrite,
    "fill": indexing.fill,
    "zero": indexing.zero,
    "getitem": indexing.getitem,
    "rrelu": values.random_leaky_relu,
    "fliplr": shapes.flip,
    "flipud": shapes.flip,
    "einsum": values.einsum,
}


def rewrite_nodes(graph: fx.GraphModule, results: Mapping[fx.Node, Any]) -> None:
    """Turn the nodes of a graph, in their order, into calls of the operators of the normal form.

    What is no such operator is left as it is.

    Args:
        graph: changed in place; no node overwrites what later ones take.
        results: what a trial run gave for every node.

    Raises:
        InputError: if a node writes into a tensor that it is given.
    """
    rewriter = Rewriter(graph, results)
    for node in list(graph.graph.nodes):
        if node.op in ("call_function", "call_method"):
            rewrite(rewriter, node)


def rewrite(rewriter: Rewriter, node: fx.Node) -> None:
    """Rewrite one call."""
    name = str(node.args[1]) if node.target is getattr else name_of(node.target) or ""
    if name in ASSERTIONS:
        rewriter.graph.erase_node(node)
        return
    if node.kwargs.get("out") is not None:
        raise InputError(f"classifier: {node.name} writes into a tensor that it is given")
    result = rewriter.results[node]
    if is_fixed(result):
        rewriter.put_value(node, result)
    elif isinstance(result, Varying):
        return
    elif name in RULES:
        RULES[name](rewriter, node, name)
    elif name in OPERATORS:
        rewriter.call_operator(node, name)
