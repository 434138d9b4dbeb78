"""Models that give something else than one tensor of logits: several outputs, or one logit.

They are wrapped in a module that gives logits [N, num_classes], and everything behind it sees that.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zscgan_ext.classifiers.tracing import image_shape_of
from zscgan_ext.errors import InputError


class OneOutput(nn.Module):
    """A model's output of one index.

    Args:
        model: gives several, in a tuple, a list or a mapping, which may stand inside each other.
        index: of the output, counted over all of them.
    """

    def __init__(self, model: nn.Module, index: int) -> None:
        super().__init__()
        self.model = model
        self.index = index

    def forward(self, images: Any) -> Any:
        """Return that output."""
        return outputs_of(self.model(images))[self.index]


class TwoLogits(nn.Module):
    """A model of one logit as a classifier of two classes, whose softmax is the logit's sigmoid.

    Args:
        model: gives one logit for each image, [N, 1] or [N].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Any) -> Any:
        """Return a zero and the logit, [N, 2]."""
        logit = self.model(images).reshape(-1, 1)
        return torch.cat([torch.zeros_like(logit), logit], 1)


def outputs_of(value: Any) -> list[Any]:
    """Return all outputs of a model in their order, whatever they stand in."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [output for each in value for output in outputs_of(each)]
    return [value]


@torch.no_grad()
def with_logits(
    name: str, model: nn.Module, image_shape: tuple[int, int, int], output_index: int | None
) -> nn.Module:
    """Return a model that gives logits as one tensor, wrapped where that is needed.

    Args:
        name: of the model, for messages.
        model: in evaluation mode.
        image_shape: (C, H, W) of its input.
        output_index: of the output with the logits; None for the first that can be that.

    Raises:
        InputError: if there is no such output, or none that can be logits.
        Exception: of the model, if it takes no such images.
    """
    result = model(torch.zeros(2, *image_shape))
    if image_shape_of(model) == image_shape:  # what `trace` gave has one output
        return TwoLogits(model) if is_one_logit(result) else model
    outputs = outputs_of(result)
    index = index_of_logits(name, outputs, output_index)
    if not isinstance(result, Tensor) and index is not None:
        model, result = OneOutput(model, index), outputs[index]
    return TwoLogits(model) if is_one_logit(result) else model


def index_of_logits(name: str, outputs: list[Any], output_index: int | None) -> int | None:
    """Return which output of two images is taken; None if there is one, which is no logits.

    Raises:
        InputError: if there is no such output, or none of several can be logits.
    """
    if output_index is not None and output_index >= len(outputs):
        raise InputError(
            f"output_index: expected 0 to {len(outputs) - 1}, as {name} gives {len(outputs)} "
            f"output(s), got {output_index}"
        )
    fitting = [i for i, output in enumerate(outputs) if may_be_logits(output)]
    if len(outputs) > 1 and output_index is None and not fitting:
        raise InputError(
            f"classifier: {name} gives {len(outputs)} outputs, none of which is logits "
            "[2, num_classes] of 2 images"
        )
    return output_index if output_index is not None else next(iter(fitting), None)


def may_be_logits(output: Any) -> bool:
    """Return True for logits of two images."""
    return (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and (is_one_logit(output) or (output.dim() == 2 and len(output) == 2))
    )


def is_one_logit(output: Any) -> bool:
    """Return True for one logit for each of two images."""
    is_tensor = isinstance(output, Tensor) and output.is_floating_point()
    return is_tensor and tuple(output.shape) in ((2,), (2, 1))
