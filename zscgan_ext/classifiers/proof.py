"""Proof that a graph computes what a model does.

Both run on the same random images, in batches of two sizes, the graph twice. Where the bits are
equal, that is the proof. Elsewhere the order of sums may differ, and both run in float64: rounding
errors are then some 1e-16, and equal functions agree to more than half of the digits, even where a
network amplifies errors a millionfold, while functions that differ do not.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from zscgan_ext.classifiers.graph import like_images
from zscgan_ext.classifiers.trials import random_images
from zscgan_ext.errors import InputError, first_line

BATCH_SIZES = (2, 3)
LOST_DIGITS = 100  # times the rounding error of the model itself: two digits

Answers: TypeAlias = Callable[[Tensor], Any]


class Truth:
    """What a model answers to random images.

    Args:
        model: in evaluation mode; may overwrite the images that it is given.
        image_shape: (C, H, W).

    Attributes:
        model: the model.
        image_shape: its.
        images: batches [N, C, H, W], of `BATCH_SIZES`.
        logits: [N, num_classes] of each.

    Raises:
        InputError: if the model raises an error.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.model = model
        self.image_shape = image_shape
        like = like_images(model)
        self.images = [random_images(count, image_shape, like) for count in BATCH_SIZES]
        self.logits = [answer(model, images.clone()) for images in self.images]


def answer(model: nn.Module, images: Tensor) -> Any:
    """Return what a model says of a batch.

    Raises:
        InputError: if it raises an error, which it may for one number of images only.
    """
    try:
        return model(images)
    except Exception as error:
        raise InputError(
            f"classifier: cannot take {len(images)} images ({first_line(error)}); expected one "
            "that takes any number"
        ) from None


def check_repeats(truth: Truth) -> None:
    """Require that a model answers the same to the same images.

    Raises:
        InputError: if it does not.
    """
    again = truth.model(truth.images[0].clone())
    if not same(again, truth.logits[0], torch.float32):
        raise InputError(
            "classifier: answers differently each time it is called with the same images, as with "
            "dropout that is always on; make it random in training only (training=self.training)"
        )


def check_independence(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Require that a model answers to an image beside other images what it answers without them.

    Args:
        model: in evaluation mode.
        image_shape: (C, H, W).

    Raises:
        InputError: if it does not.
    """
    if answers_alike_together(Truth(model, image_shape)):
        return
    try:
        exact = Truth(copy.deepcopy(model).double(), image_shape)
    except Exception:  # of a model that converts tensors to float32 itself
        return
    # Other numbers of images take other kernels, whose rounding a very deep network amplifies.
    if exact.logits[0].dtype == torch.float64 and not answers_alike_together(exact):
        raise InputError(
            "classifier: what it answers to an image depends on the other images of the batch, as "
            "with batch norm that takes their statistics; make it do so in training only "
            "(training=self.training)"
        )


def answers_alike_together(truth: Truth) -> bool:
    """Return True if a model answers to all images at once what it answers to its batches.

    What it answers with other shapes is told where its graph is looked at.
    """
    if truth.logits[0].shape[1:] != truth.logits[1].shape[1:]:
        return True
    wanted = torch.cat(truth.logits)
    return same(answer(truth.model, torch.cat(truth.images)), wanted, wanted.dtype)


def require_same(truth: Truth, graph: fx.GraphModule) -> None:
    """Require that a graph computes what a model does, and leaves its images as they are.

    Raises:
        InputError: naming the first layer whose result differs, or the way in which it differs.
    """
    copies = [images.clone() for images in truth.images]
    found = [graph(images) for images in copies]
    if not all(map(torch.equal, copies, truth.images)):
        raise InputError("classifier: its graph overwrites the images that it is given")
    if all(map(torch.equal, found, truth.logits)):
        if not torch.equal(graph(copies[0]), found[0]):
            raise InputError("classifier: its graph answers differently when it is called again")
        return
    exact, exact_graph = exact_copies(truth, graph)
    found = [exact_graph(images) for images in (*exact.images, exact.images[0])]
    dtype = exact.logits[0].dtype
    wanted = (*exact.logits, exact.logits[0])
    if not all(same(a, b, dtype) for a, b in zip(found, wanted, strict=True)):
        raise InputError(f"classifier: {difference(exact, exact_graph, found[0])}")


@torch.no_grad()
def require_near(
    truth: Truth, graph: Answers, change: str, remake: Callable[[Any], Answers]
) -> None:
    """Require that a changed graph, its weights rounded to their dtype, computes what a model does.

    Where both differ by more than rounding usually leaves, the network may amplify it, as very deep
    ones do. Then the same change of the model in float64 has to compute what the model does there,
    up to `LOST_DIGITS` times what rounding the images changes; and the graph may be that many times
    as far from float64 as the model itself is.

    Args:
        truth: of the model, a graph in normal form.
        graph: called with images.
        change: what was done to the model, for the error.
        remake: makes the same change to a copy of the model in float64.

    Raises:
        InputError: if it does not, or overwrites its images, or answers differently each time.
    """
    copies = [images.clone() for images in truth.images]
    found = [*map(graph, copies), graph(copies[0])]
    wanted = [*truth.logits, truth.logits[0]]
    if not all(map(torch.equal, copies, truth.images)):
        raise InputError(f"classifier: {change} makes it overwrite the images that it is given")
    if all(same(ours, theirs, theirs.dtype) for ours, theirs in zip(found, wanted, strict=True)):
        return
    if not differs_by_rounding(truth, found[: len(truth.images)], remake):
        raise InputError(
            f"classifier: {change} changes what it computes; its weights or stored variances may "
            "differ by more orders of magnitude than float32 can tell apart"
        )


def differs_by_rounding(truth: Truth, found: list[Any], remake: Callable[[Any], Answers]) -> bool:
    """Return True if a change is right in float64, and loses about as much as the model itself.

    Args:
        truth: of the model.
        found: what the changed model gives for each batch, in the model's own dtype.
        remake: see `require_near`.
    """
    batches = [images.double() for images in truth.images]
    try:
        model = copy.deepcopy(truth.model).double()
        exact = [model(images.clone()) for images in batches]
        ulp = 1 + torch.finfo(torch.float64).eps
        with_rounded_images = [model(images * ulp) for images in batches]
        changed = remake(model)
        remade = [changed(images.clone()) for images in batches]
    except Exception:  # of a model that converts tensors to float32 itself
        return False
    pairs = zip(remade, exact, strict=True)
    if not all(same(ours, theirs, torch.float64) for ours, theirs in pairs):
        amplified = largest_error(with_rounded_images, exact)
        if not largest_error(remade, exact) <= LOST_DIGITS * amplified < torch.inf:
            return False
    lost = largest_error(truth.logits, exact)
    return largest_error(found, exact) <= LOST_DIGITS * lost < torch.inf


def largest_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the largest error of logits, infinite where a number is not finite."""
    errors = [(ours - theirs).abs().max() for ours, theirs in zip(found, exact, strict=True)]
    return float(torch.stack(errors).nan_to_num(torch.inf).max())


def exact_copies(truth: Truth, graph: fx.GraphModule) -> tuple[Truth, fx.GraphModule]:
    """Return what a model answers, and its graph, in float64; as they are where that cannot be.

    It cannot where a model converts tensors to float32 itself.
    """
    try:
        exact = Truth(copy.deepcopy(truth.model).double(), truth.image_shape)
        exact_graph = copy.deepcopy(graph).double()
        exact_graph(exact.images[0])
    except Exception:  # of the model's own code
        return truth, graph
    return exact, exact_graph


def same(found: Any, wanted: Any, dtype: torch.dtype) -> bool:
    """Return True if two results of one function agree as far as rounding lets them.

    That is to half of the digits of how much logits vary over images, and to a thousand rounding
    errors of what they have in common, which cancels in a comparison of images.

    Args:
        found: [N, num_classes].
        wanted: like it.
        dtype: that both were computed in.
    """
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return False
    if not torch.equal(found.isfinite(), wanted.isfinite()):
        return False
    finite = wanted.isfinite()
    if not bool(finite.any()):
        return True
    exact = wanted.double().where(finite, torch.nan)
    error = (found.double() - exact)[finite].abs().max()
    variation = (exact - exact.nanmean(0))[finite].abs().max()
    rounding = torch.finfo(dtype).eps
    allowed = rounding**0.5 * variation + 1000 * rounding * exact[finite].abs().max()
    return bool(error <= allowed)


# ---- naming what differs ------------------------------------------------------------------------


def difference(truth: Truth, graph: fx.GraphModule, found: Any) -> str:
    """Say in one line where a graph first differs from a model.

    Args:
        truth: of the model.
        graph: differs from it.
        found: what the graph gives for the first batch.
    """
    wanted = truth.logits[0]
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return f"its graph gives {describe(found)} in place of {describe(wanted)}"
    layer = first_difference(truth, graph)
    place = "behind its last layer" if layer is None else f"before or in the layer {layer}"
    scale = float((wanted - wanted.mean(0)).abs().max()) or 1.0
    error = float((found - wanted).abs().max()) / scale
    return (
        f"its graph computes something else, {place} (logits differ by {100 * error:.3g} % of "
        "their range); a tensor may be overwritten under another name, or a value of Python "
        "changed by the call"
    )


def describe(result: Any) -> str:
    """Return the shape of a tensor, or the type of anything else."""
    return str(list(result.shape)) if isinstance(result, Tensor) else type(result).__name__


def first_difference(truth: Truth, graph: fx.GraphModule) -> str | None:
    """Return the first layer that gives another result in a graph than in its model, if any."""
    wanted: list[tuple[str, Tensor]] = []
    named = dict(truth.model.named_modules())
    with recorded(named, wanted):
        truth.model(truth.images[0].clone())
    of_graph: list[tuple[str, Tensor]] = []
    targets = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    with recorded({target: graph.get_submodule(target) for target in targets}, of_graph):
        graph(truth.images[0])
    shared = targets & {name for name, _ in wanted}
    pairs = zip(
        [pair for pair in of_graph if pair[0] in shared],
        [pair for pair in wanted if pair[0] in shared],
        strict=False,
    )
    for (name, ours), (other, theirs) in pairs:
        if name != other or not same(ours, theirs, ours.dtype):
            return name
    return None


@contextmanager
def recorded(modules: dict[str, nn.Module], into: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Keep copies of what modules give, with their names, in the order of the calls."""

    def keeper(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, result: Any) -> None:
            if isinstance(result, Tensor):
                into.append((name, result.clone()))

        return keep

    hooks = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
