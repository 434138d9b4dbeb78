"""Trial runs of a classifier's graph: shapes of all tensors, and what depends on no image."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from zscgan_ext.classifiers.graph import device_of
from zscgan_ext.errors import InputError
from zscgan_ext.export.onnx_call import TensorShape, Varying

# What takes no more of its input than shape and type.
READS_SHAPE: tuple[Any, ...] = (
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
)
READS_NUMBERS = ("item", "tolist")


class Trial(fx.Interpreter):
    """Runs a graph; keeps shapes of tensors, tensors that depend on no image, other results."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.results: dict[fx.Node, Any] = {}
        self.constants: dict[fx.Node, Tensor] = {}
        self.of_images: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        self.results[n] = Varying() if n.target in READS_NUMBERS else shapes_of(result)
        if self.depends_on_images(n):
            self.of_images.add(n)
        elif isinstance(result, Tensor) and n.op != "get_attr":
            self.constants[n] = result
        return result

    def depends_on_images(self, node: fx.Node) -> bool:
        """Tell whether a node gives tensors computed from more of the images than their shape.

        Quantizers are modules: what they give is never stored as a constant.
        """
        if node.op in ("placeholder", "call_module", "output"):
            return True
        gives_tensors = isinstance(self.results[node], TensorShape | list)
        reads = gives_tensors and node.target not in READS_SHAPE
        return reads and any(source in self.of_images for source in node.all_input_nodes)


def shapes_of(result: Any) -> Any:
    """Replace tensors by their shapes."""
    if isinstance(result, Tensor):
        return TensorShape(tuple(result.shape), result.dtype)
    if isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result):
        return [shapes_of(part) for part in result]
    return result


def without_batch(first: Any, second: Any) -> Any:
    """Merge the results of trials with two sizes of batch: sizes that differ become None."""
    if isinstance(first, TensorShape):
        pairs = zip(first.sizes, second.sizes, strict=True)
        return TensorShape(tuple(a if a == b else None for a, b in pairs), first.dtype)
    if isinstance(first, list) and len(first) == len(second):
        return [without_batch(a, b) for a, b in zip(first, second, strict=True)]
    is_plain = isinstance(first, int | float | tuple | list)
    return Varying() if is_plain and first != second else first


def constant_of(first: Tensor, second: Tensor) -> Tensor | None:
    """Merge a tensor of two trials: one row where all are alike; None where trials differ."""
    if first.shape == second.shape:
        return first if torch.equal(first, second) else None
    if first.dim() != second.dim():
        return None
    axes = [d for d in range(first.dim()) if first.shape[d] != second.shape[d]]
    row = first.narrow(axes[0], 0, 1)
    if len(axes) > 1 or any(not torch.equal(row.expand_as(t), t) for t in (first, second)):
        return None
    return row


@dataclass(frozen=True)
class TriedGraph:
    """What the nodes of a graph gave in trials with two sizes of batch.

    `results` holds a `TensorShape` for a tensor, a list of them, or another value. `constants`
    holds the tensors that depend on no image, one row of them where each image has the same.
    """

    results: dict[fx.Node, Any]
    constants: dict[fx.Node, Tensor]


@torch.no_grad()
def try_out(graph: fx.GraphModule, image_shape: tuple[int, int, int]) -> TriedGraph:
    """Run a graph on two and on three blank images.

    Raises:
        InputError: if a tensor that depends on no image differs between both.
    """
    first, second = Trial(graph), Trial(graph)
    for trial, batch_size in ((first, 2), (second, 3)):
        trial.run(torch.zeros(batch_size, *image_shape, device=device_of(graph)))
    constants: dict[fx.Node, Tensor] = {}
    for node, value in first.constants.items():
        constant = constant_of(value, second.constants[node])
        if constant is None:
            raise InputError(
                f"export: {node.name} gives other numbers for two images than for three, which no "
                "ONNX file can; let it depend on the images alone, or export to safetensors alone"
            )
        constants[node] = constant
    results = {
        node: without_batch(result, second.results[node]) for node, result in first.results.items()
    }
    return TriedGraph(results, constants)
