"""What the logits of a classifier mean: one class of each image, or any number of labels.

Everything that reads logits, or asks for labels, asks a head how.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

HeadName = Literal["single-label", "multi-label"]


class Head(ABC):
    """How logits [N, num_classes] are read."""

    name: HeadName

    def __reduce__(self) -> str:
        """Let copies of what has a head have the very same one: its name in this module."""
        return self.name.upper().replace("-", "_")

    @abstractmethod
    def label_loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the negative log-likelihood of the labels of images, their mean or `sum`."""

    @abstractmethod
    def divergence(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return `KL(teacher || student)` of the answers, the mean over images, a scalar."""

    @abstractmethod
    def sampled_labels(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        """Draw labels from the answers; the generator is on the device of the logits."""

    @abstractmethod
    def chosen(self, logits: Tensor) -> Tensor:
        """Return the labels that are the most likely, int64."""

    @abstractmethod
    def confidence(self, logits: Tensor) -> Tensor:
        """Return how likely the chosen labels are, from 0 to 1, [N]."""

    @abstractmethod
    def entropy(self, logits: Tensor) -> Tensor:
        """Return the entropy of the answers, nats, [N]."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each label, [N, num_classes]."""

    @abstractmethod
    def only(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the labels of images to which one each applies, and no other.

        Args:
            labels: int64 [N].
            num_classes: that there are.
        """

    @abstractmethod
    def rows(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return labels as [N, num_classes], 1 for each that applies."""

    @abstractmethod
    def has(self, labels: Tensor, label: int) -> Tensor:
        """Return which images have a label, booleans [N]."""

    @abstractmethod
    def described(self, logits: Tensor, names: Sequence[str]) -> list[str]:
        """Name the labels that are chosen for each image."""


class SingleLabel(Head):
    """One class applies to each image: labels are int64 [N], the answer is a softmax."""

    name: HeadName = "single-label"

    def label_loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the cross entropy."""
        return F.cross_entropy(logits.float(), labels, reduction=reduction)

    def divergence(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the divergence of the softmaxes."""
        divergence: Tensor = F.kl_div(
            F.log_softmax(logits, dim=1),
            F.log_softmax(teacher_logits, dim=1),
            log_target=True,
            reduction="batchmean",
        )
        return divergence

    def sampled_labels(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        """Draw a class for each image, [N]."""
        return torch.multinomial(logits.float().softmax(1), 1, generator=rng).squeeze(1)

    def chosen(self, logits: Tensor) -> Tensor:
        """Return the class of the largest logit, [N]."""
        return logits.argmax(1)

    def confidence(self, logits: Tensor) -> Tensor:
        """Return the largest softmax probability, [N]."""
        return self.probabilities(logits).amax(1)

    def entropy(self, logits: Tensor) -> Tensor:
        """Return the entropy of the softmax, [N]."""
        entropy: Tensor = torch.special.entr(self.probabilities(logits)).sum(1)
        return entropy

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax."""
        return logits.softmax(1)

    def only(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return them as they are, [N]."""
        return labels

    def rows(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return 1 at the class of each image."""
        return F.one_hot(labels, num_classes)

    def has(self, labels: Tensor, label: int) -> Tensor:
        """Return which images are of a class, booleans [N]."""
        is_there: Tensor = labels == label
        return is_there

    def described(self, logits: Tensor, names: Sequence[str]) -> list[str]:
        """Name the class that is chosen for each image."""
        return [names[label] for label in self.chosen(logits).tolist()]


class MultiLabel(Head):
    """Each label applies to an image or not: labels are int64 [N, num_classes] of 0 and 1.

    The answer is a sigmoid for each label, and what is said of images sums over their labels.
    """

    name: HeadName = "multi-label"

    def label_loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the binary cross entropy, summed over the labels of an image."""
        each = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        of_images = each.sum(1)
        return of_images.sum() if reduction == "sum" else of_images.mean()

    def divergence(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the divergence of each label's two answers, summed over the labels of an image."""
        teacher = teacher_logits.sigmoid()
        applies = F.logsigmoid(teacher_logits) - F.logsigmoid(logits)
        is_absent = F.logsigmoid(-teacher_logits) - F.logsigmoid(-logits)
        return (teacher * applies + (1 - teacher) * is_absent).sum(1).mean()

    def sampled_labels(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        """Draw each label by its own probability, [N, num_classes]."""
        return torch.bernoulli(logits.float().sigmoid(), generator=rng).long()

    def chosen(self, logits: Tensor) -> Tensor:
        """Return 1 where a label is more likely than not, [N, num_classes]."""
        return (logits > 0).long()

    def confidence(self, logits: Tensor) -> Tensor:
        """Return the mean over labels of the likelier answer's probability, [N]."""
        return logits.abs().sigmoid().mean(1)

    def entropy(self, logits: Tensor) -> Tensor:
        """Return the sum of the labels' entropies, [N]."""
        both = torch.stack([logits.sigmoid(), (-logits).sigmoid()])
        entropy: Tensor = torch.special.entr(both).sum((0, 2))
        return entropy

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid."""
        return logits.sigmoid()

    def only(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return 1 for that label and 0 for all others, [N, num_classes]."""
        return F.one_hot(labels, num_classes)

    def rows(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return them as they are."""
        return labels

    def has(self, labels: Tensor, label: int) -> Tensor:
        """Return to which images a label applies, booleans [N]."""
        is_there: Tensor = labels[:, label] > 0
        return is_there

    def described(self, logits: Tensor, names: Sequence[str]) -> list[str]:
        """Name the labels that are chosen for each image, with commas between them."""
        rows = self.chosen(logits)
        return [
            ", ".join(names[label] for label in row.nonzero().flatten().tolist()) or "no label"
            for row in rows
        ]


SINGLE_LABEL, MULTI_LABEL = SingleLabel(), MultiLabel()
HEADS: dict[str, Head] = {head.name: head for head in (SINGLE_LABEL, MULTI_LABEL)}
