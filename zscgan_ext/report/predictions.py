"""How the classes that the quantized classifier chooses differ from the float one's."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Change:
    """Images that the float classifier puts in one class and the quantized one in another."""

    float_class: int
    quantized_class: int
    images: int


def confusion(float_classes: Tensor, quantized_classes: Tensor, num_classes: int) -> Tensor:
    """Count images by the class of the float classifier and of the quantized one.

    Args:
        float_classes: int64 [N].
        quantized_classes: int64 [N].
        num_classes: of both.

    Returns:
        int64 [num_classes, num_classes], the rows those of the float classifier.
    """
    index = float_classes * num_classes + quantized_classes
    return torch.bincount(index, minlength=num_classes**2).view(num_classes, num_classes)


def most_frequent_changes(counts: Tensor, count: int) -> list[Change]:
    """Return the pairs of different classes that occur most often, most frequent first."""
    changed = counts.clone().fill_diagonal_(0).flatten()
    order = changed.argsort(descending=True, stable=True)[:count]
    pairs = ((int(i) // len(counts), int(i) % len(counts), int(changed[i])) for i in order)
    return [Change(*pair) for pair in pairs if pair[2]]
