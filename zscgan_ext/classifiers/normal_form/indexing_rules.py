"""Rules for parts of a tensor: taking them is indexing, overwriting them is concatenation."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from zscgan_ext.classifiers.normal_form.rewriter import Rewriter, free_size, named


def getitem(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Take one of several tensors, or a part of one."""
    rewriter.set(node, operator.getitem, *node.args)


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
    found = rewriter.metadata(source)
    if found is not None and not isinstance(part, fx.Node):
        whole = (slice(None),) * (dim % len(found.sizes))
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
    found, index = rewriter.metadata(node), bound["index"]
    if found is None or not isinstance(index, int):
        return
    sizes = list(found.sizes)
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
    found = rewriter.metadata(node)
    dim = bound.get("dim", 0)
    size = None if found is None else found.sizes[dim]
    if found is None or size is None:  # a part of the batch
        if part == slice(None):
            rewriter.replace(node, source)
        return
    start, end, _ = part.indices(size)
    whole = (slice(None),) * (dim % len(found.sizes))
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
    found, before = rewriter.metadata(node), rewriter.metadata(source)
    if found == before:
        rewriter.replace(node, source)
    elif found is not None and None not in found.sizes[1:] and before is not None:
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
