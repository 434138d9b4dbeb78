"""Images of the user's without labels, mixed into the generated ones that a student learns from."""

from collections.abc import Iterator

import torch
from torch import Tensor

from zscgan_ext.images.datasets import Images
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.stages.run import RandomStream, Run
from zscgan_ext.stages.student_stages import Batches, BatchesOfSize

LARGEST_SHARE = 0.5  # of a batch: the others show the classes and poses that the user's lack


def mixed(run: Run, images: Images, generated: BatchesOfSize) -> BatchesOfSize:
    """Return what gives generated batches in which a part of the images is the user's.

    That is half of a batch, or less where there are fewer: none is twice in a batch. Few images do
    not push the generated ones out.

    Args:
        run: of them.
        images: the user's, whose labels are not looked at.
        generated: gives batches of generated images of a size.
    """
    seed = 1000 * run.config.seed + RandomStream.CALIBRATION_DATA
    rng = torch.Generator().manual_seed(run.own_seed(seed))
    run.checkpoints.hold_rng("calibration data rng", rng)

    def batches(batch_size: int) -> Batches:
        return mixed_batches(run, images, generated(batch_size), batch_size, rng)

    return batches


def mixed_batches(
    run: Run, images: Images, generated: Batches, batch_size: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches [B, C, H, W] of which the first images are the user's, and labels [B].

    The classifier labels the user's images, as far as labels have a weight.
    """
    count = min(len(images), int(LARGEST_SHARE * batch_size))
    memory_format = run.execution.memory_format
    for pixels, labels in generated:
        index = torch.randperm(len(images), generator=rng)[:count]
        chosen = images.subset(index).batches(max(count, 1), run.classifier.preprocessing)
        own = torch.cat([batch for batch, _ in chosen]).to(run.device) if count else pixels[:0]
        joined = to_memory_format(torch.cat([own, pixels[count:]]), memory_format)
        if run.config.fine_tuning.label_weight > 0 and count:
            with torch.no_grad():
                answers = run.classifier.head.chosen(run.classifier.model(joined[:count]))
            labels = torch.cat([answers, labels[count:]])
        yield joined, labels
