"""Rules for shapes: operators that reorder, repeat or cast elements become one of a few."""

import torch
from torch import fx

from zscgan_ext.classifiers.normal_form.rewriter import Rewriter, free_size, named
from zscgan_ext.classifiers.trials import TensorMetadata


def reshape(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give the shape that a trial run gave."""
    found = rewriter.metadata(node)
    shape = None if found is None else free_size(found.sizes)
    if shape is not None and 0 not in shape:
        rewriter.set(node, torch.reshape, node.args[0], shape=shape)


def permute(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Give the order of dimensions, which a tensor with a size of its own in each one shows."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    found = rewriter.metadata(source)
    if found is None or any(isinstance(a, fx.Node) for a in (*node.args[1:],)):
        return
    probe = torch.empty([2 + index for index in range(len(found.sizes))], device="meta")
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
    sizes = [part.sizes[dim] for part in parts if isinstance(part, TensorMetadata)]
    if None not in sizes and len(sizes) == len(parts):
        rewriter.set(node, torch.split, source, split_size_or_sections=sizes, dim=dim)


def expand(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Repeat along dimensions of size one, to the shape that a trial run gave."""
    found, source = rewriter.metadata(node), rewriter.metadata(node.args[0])
    if found is None or source is None:
        return
    added = len(found.sizes) - len(source.sizes)
    before = (*[1] * added, *source.sizes)
    if any(a is None and b is not None for a, b in zip(found.sizes, before, strict=True)):
        return  # the number of images is not known
    if found == source:
        rewriter.replace(node, node.args[0])
        return
    sizes = [-1 if size is None else size for size in found.sizes]
    rewriter.set(node, torch.broadcast_to, node.args[0], size=sizes)


def repeat(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Repeat a tensor along its dimensions."""
    bound = rewriter.arguments(node, name)
    repeats = bound.get("dims", bound.get("repeats", ()))
    if not any(isinstance(count, fx.Node) for count in repeats):
        rewriter.set(node, torch.tile, bound["input"], dims=list(repeats))


def flip(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Reverse one dimension."""
    rewriter.set(node, torch.flip, node.args[0], dims=[1 if name == "fliplr" else 0])


def cast(rewriter: Rewriter, node: fx.Node, name: str) -> None:
    """Pass the input on where the dtype stays; copies and devices mean nothing here."""
    source = named(node, "input").get("input")
    before, after = rewriter.metadata(source), rewriter.metadata(node)
    if before is None or after is None:
        return
    if before == after:
        rewriter.replace(node, source)
    elif before.sizes == after.sizes:
        rewriter.set(node, torch.Tensor.to, source, dtype=after.dtype)
