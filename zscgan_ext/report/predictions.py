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


def most_frequent_changes(
    float_classes: Tensor, quantized_classes: Tensor, count: int
) -> list[Change]:
    """Return the pairs of different classes that occur most often, most frequent first.

    Args:
        float_classes: int64 [N].
        quantized_classes: int64 [N].
        count: pairs at most.
    """
    changed = float_classes != quantized_classes
    # Of pairs that occur, not of all that there may be: these are as many as classes, squared.
    pairs = torch.stack([float_classes[changed], quantized_classes[changed]])
    found, images = pairs.unique(dim=1, return_counts=True)
    order = images.argsort(descending=True, stable=True)[:count].tolist()
    return [
        Change(int(found[0, index]), int(found[1, index]), int(images[index])) for index in order
    ]
