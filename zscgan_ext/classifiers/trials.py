"""Trial runs of a graph: what every node gives, and what of it depends on the number of images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from zscgan_ext.classifiers.graph import like_images

BATCH_SIZES = (2, 4)


@dataclass(frozen=True)
class TensorMetadata:
    """Shape and type of a tensor that a node gives.

    Args:
        sizes: its shape; None for a size that depends on the number of images.
        dtype: of its elements.
    """

    sizes: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Varying:
    """A value that is no tensor and depends on the number of images."""


class Trial(fx.Interpreter):
    """Runs a graph and keeps what is known of the result of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # which would make several lines of an error
        self.results: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        self.results[n] = metadata_of(result)
        return result


def metadata_of(result: Any) -> Any:
    """Replace tensors by their metadata, also in lists and named tuples."""
    if isinstance(result, Tensor):
        return TensorMetadata(tuple(result.shape), result.dtype)
    if isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result):
        return [metadata_of(part) for part in result]
    return result


def merged(first: Any, second: Any) -> Any:
    """Merge the results of trials with two numbers of images."""
    if isinstance(first, TensorMetadata):
        pairs = zip(first.sizes, second.sizes, strict=True)
        return TensorMetadata(tuple(a if a == b else None for a, b in pairs), first.dtype)
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [merged(a, b) for a, b in zip(first, second, strict=True)]
    return first if first == second else Varying()


def random_images(count: int, image_shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """Return standard normal images [count, C, H, W], the same ones at each call."""
    rng = torch.Generator().manual_seed(count)
    return torch.randn(count, *image_shape, generator=rng).to(like.device, like.dtype)


@torch.no_grad()
def try_out(graph: fx.GraphModule, image_shape: tuple[int, int, int]) -> dict[fx.Node, Any]:
    """Run a graph on two numbers of images; return what is known of the result of every node.

    That is `TensorMetadata` for a tensor, a list of them, or the value itself; `Varying` for one
    that depends on the number of images.
    """
    trials = []
    like = like_images(graph)
    for count in BATCH_SIZES:
        trial = Trial(graph)
        trial.run(random_images(count, image_shape, like))
        trials.append(trial.results)
    return {node: merged(trials[0][node], trials[1][node]) for node in trials[0]}
