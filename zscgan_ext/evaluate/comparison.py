"""A quantized classifier beside the float one on images without labels."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from zscgan_ext.classifiers.heads import Head
from zscgan_ext.errors import one_line
from zscgan_ext.evaluate.evaluation import (
    CPU,
    EvaluationTarget,
    check_logits,
    latency_by_batch,
    latency_lines,
)
from zscgan_ext.images.datasets import ImageTree
from zscgan_ext.measures import agreement, predict_together
from zscgan_ext.run_folder.whole_file import json_bytes

MOST_LISTED = 20  # differences that are printed; all are in the JSON


@dataclass(frozen=True)
class Difference:
    """An image that the two classifiers put in different classes, or give different labels."""

    file: str
    float_class: str  # of several labels, all that are given
    float_confidence: float  # percent
    quantized_class: str
    quantized_confidence: float  # percent


@dataclass(frozen=True)
class Comparison:
    """What was measured without labels; percentages are of all images."""

    images: int
    agreement: float | None  # as `measures.agreement`; None where float is not at hand
    confidence: float  # mean probability of what is chosen, percent
    float_confidence: float | None
    latency_ms: dict[int, float]  # as of `Evaluation`
    chosen: dict[str, int]  # images that the quantized classifier gives a class, by its name
    differences: list[Difference]  # those that the float classifier is surest of first

    def __str__(self) -> str:
        """Lay out everything as lines."""
        lines = [f"{'images':34} {self.images:10,}"]
        if self.agreement is not None:
            lines.append(f"{'agreement with float %':34} {self.agreement:10.2f}")
        lines.append(f"{'mean confidence %':34} {self.confidence:10.2f}")
        if self.float_confidence is not None:
            name = "mean confidence % of float"
            lines.append(f"{name:34} {self.float_confidence:10.2f}")
        lines += latency_lines(self.latency_ms)
        if self.differences:
            lines += ["", "different answers, the surest of float first:"]
            lines += [
                one_line(
                    f"{each.file}: float {each.float_class} ({each.float_confidence:.1f} %), "
                    f"quantized {each.quantized_class} ({each.quantized_confidence:.1f} %)"
                )
                for each in self.differences[:MOST_LISTED]
            ]
        if len(self.differences) > MOST_LISTED:
            lines.append(f"and {len(self.differences) - MOST_LISTED:,} more, all with --json")
        return "\n".join(lines)

    def as_json(self) -> bytes:
        """Write what was measured as JSON."""
        return json_bytes(asdict(self))


def compare(target: EvaluationTarget, data: ImageTree, batch_size: int) -> Comparison:
    """Measure a classifier on images without labels.

    Args:
        target: its models on the CPU.
        data: the images.
        batch_size: images in a batch.

    Raises:
        InputError: if there are logits of other classes.
    """
    preprocessing = target.preprocessing
    found, first = predict_together(target.models, data, preprocessing, batch_size, CPU)
    logits, float_logits = found[0], found[1] if len(found) > 1 else None
    check_logits(logits, target)
    head = target.head
    counts = head.rows(head.chosen(logits), len(target.class_names)).sum(0).tolist()
    chosen: dict[str, int] = {}
    for name, count in zip(target.class_names, counts, strict=True):
        if count:
            chosen[name] = chosen.get(name, 0) + count
    return Comparison(
        images=len(data),
        agreement=None if float_logits is None else agreement(logits, float_logits, head),
        confidence=float(confidences(logits, head).mean()),
        float_confidence=None
        if float_logits is None
        else float(confidences(float_logits, head).mean()),
        latency_ms=latency_by_batch(target, first),
        chosen=chosen,
        differences=[]
        if float_logits is None
        else differences(logits, float_logits, data.files, target),
    )


def confidences(logits: Tensor, head: Head) -> Tensor:
    """Return how likely what is chosen is, percent [N]."""
    return 100 * head.confidence(logits.double())


def differences(
    logits: Tensor, float_logits: Tensor, files: tuple[Path, ...], target: EvaluationTarget
) -> list[Difference]:
    """List the images of different answers, those that the float classifier is surest of first."""
    head, names = target.head, target.class_names
    confidence, float_confidence = (confidences(each, head) for each in (logits, float_logits))
    differ = head.chosen(logits) != head.chosen(float_logits)
    index = torch.nonzero(differ.view(len(differ), -1).any(1)).flatten()
    index = index[float_confidence[index].argsort(descending=True, stable=True)]
    chosen, float_chosen = (head.described(each[index], names) for each in (logits, float_logits))
    return [
        Difference(
            str(files[i]),
            float_chosen[place],
            float(float_confidence[i]),
            chosen[place],
            float(confidence[i]),
        )
        for place, i in enumerate(index.tolist())
    ]
