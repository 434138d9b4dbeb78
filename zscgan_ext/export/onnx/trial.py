"""Trial runs of a graph that is written as ONNX: also, what in it depends on no image."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from zscgan_ext.classifiers.graph import like_images
from zscgan_ext.classifiers.normal_form.operators import name_of
from zscgan_ext.classifiers.trials import (
    BATCH_SIZES,
    TensorMetadata,
    Trial,
    Varying,
    merged,
    random_images,
)
from zscgan_ext.errors import InputError

# What takes no more of its input than shape and type.
READS_SHAPE = {
    *("zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
}
READS_NUMBERS = {"item", "tolist"}


class ConstantTrial(Trial):
    """A trial that also keeps the tensors that depend on no image."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.constants: dict[fx.Node, Tensor] = {}
        self.of_images: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if name_of(n.target) in READS_NUMBERS:
            self.results[n] = Varying()
        if self.depends_on_images(n):
            self.of_images.add(n)
        elif isinstance(result, Tensor) and n.op != "get_attr":
            self.constants[n] = result
        return result

    def depends_on_images(self, node: fx.Node) -> bool:
        """Return True if a node gives tensors computed from more of the images than their shape.

        Quantizers are modules: what they give is never stored as a constant.
        """
        if node.op in ("placeholder", "call_module", "output"):
            return True
        gives_tensors = isinstance(self.results[node], TensorMetadata | list)
        reads = gives_tensors and name_of(node.target) not in READS_SHAPE
        return reads and any(source in self.of_images for source in node.all_input_nodes)


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
    """What the nodes of a graph gave in trials with two numbers of images.

    `results` holds what `try_out` of `classifiers/trials.py` gives. `constants` holds the tensors
    that depend on no image, one row of them where each image has the same.
    """

    results: dict[fx.Node, Any]
    constants: dict[fx.Node, Tensor]


@torch.no_grad()
def try_out(graph: fx.GraphModule, image_shape: tuple[int, int, int]) -> TriedGraph:
    """Run a graph on two numbers of images.

    Raises:
        InputError: if a tensor that depends on no image differs between both.
    """
    first, second = ConstantTrial(graph), ConstantTrial(graph)
    for trial, count in zip((first, second), BATCH_SIZES, strict=True):
        trial.run(random_images(count, image_shape, like_images(graph)))
    constants: dict[fx.Node, Tensor] = {}
    for node, value in first.constants.items():
        constant = constant_of(value, second.constants[node])
        if constant is None:
            raise InputError(
                f"export: {node.name} gives other numbers for {BATCH_SIZES[0]} images than for "
                f"{BATCH_SIZES[1]}, which no ONNX file can; let it depend on the images only, or "
                "export to safetensors only"
            )
        constants[node] = constant
    results = {node: merged(result, second.results[node]) for node, result in first.results.items()}
    return TriedGraph(results, constants)
