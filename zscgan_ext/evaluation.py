"""Measuring a classifier: logits on labelled images, top-1, top-5, agreement."""

import torch
from torch import Tensor, nn

from zscgan_ext.datasets import Images
from zscgan_ext.memory_format import to_channels_last
from zscgan_ext.preprocessing import Preprocessing


@torch.no_grad()
def predict(
    model: nn.Module,
    data: Images,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Run all images through a model that is in eval mode.

    Args:
        model: on `device`.
        data: the images, in order.
        preprocessing: of the classifier.
        batch_size: images in a batch.
        device: where the model is.

    Returns:
        logits, float32 [N, num_classes] on the CPU.
    """
    logits = [
        model(to_channels_last(images.to(device))).float().cpu()
        for images, _ in data.batches(batch_size, preprocessing)
    ]
    return torch.cat(logits)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the percentage of images [N] whose largest logit [N, num_classes] is the label's."""
    return percentage(logits.argmax(1) == labels)


def top5(logits: Tensor, labels: Tensor) -> float:
    """Return the percentage of images whose label is among the five largest logits."""
    largest = logits.topk(min(5, logits.shape[1]), dim=1).indices  # [N, 5]
    return percentage((largest == labels[:, None]).any(1))


def agreement(logits: Tensor, float_logits: Tensor) -> float:
    """Return the percentage of images that both models put in the same class."""
    return percentage(logits.argmax(1) == float_logits.argmax(1))


def percentage(matches: Tensor) -> float:
    """Return how many of [N] booleans hold, in percent."""
    return 100 * int(matches.sum()) / matches.numel()
