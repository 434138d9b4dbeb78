"""Watching that the numbers of trainers stay finite, and finding where they ceased to be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zscgan_ext import distributed
from zscgan_ext.errors import InputError
from zscgan_ext.training.trainer import Trainer

FROZEN = "classifier"  # as trainers name the model that does not learn
SINGULARITIES = (
    "look in the classifier for a root, logarithm or division at zero, from which a small number "
    "inside keeps away, such as 1e-6"
)
UPDATE = "the update of the weights"
GROWN = 1e3  # weights above this are a sign of steps that were too long


class NonFiniteError(InputError):
    """A loss or gradient was infinite or not a number; the run is back where all was good."""


class FiniteNumbers:
    """Looks now and then whether the numbers of trainers are finite.

    Looking synchronizes with the device, a step does not. What went wrong in between is found by
    taking the steps since the last look again, with a look at every layer.

    Args:
        trainers: their losses, parameters and optimizers are looked at; a step of the stage is one
            of each, in this order. The last one counts the steps.
        snapshot: copies the state of all that the steps change.
        restore: puts it back.
    """

    def __init__(
        self,
        trainers: Sequence[Trainer],
        snapshot: Callable[[], Any],
        restore: Callable[[Any], None],
    ) -> None:
        self.trainers = trainers
        self.snapshot = snapshot
        self.restore = restore
        self.good = snapshot()

    def check(self) -> None:
        """Look once.

        Raises:
            NonFiniteError: naming step, layer and likely cause, after the state of the last look
                that found nothing was put back.
        """
        if all(self.are_finite()):
            self.good = self.snapshot()
            return
        last = self.trainers[-1].steps_taken
        self.restore(self.good)
        message = self.find(last)
        self.restore(self.good)
        raise NonFiniteError(message)

    def are_finite(self) -> list[bool]:
        """Return, for each trainer, True if its numbers are finite."""
        return [trainer.is_finite() for trainer in self.trainers]

    def find(self, last: int) -> str:
        """Take steps again, up to the last; say where the first bad number arises."""
        counting = self.trainers[-1]
        for trainer in self.trainers:
            trainer.run_eagerly()
        first = counting.steps_taken + 1
        while counting.steps_taken < last:
            largest = [largest_parameter(trainer) for trainer in self.trainers]
            with watched(self.trainers) as seen:
                for index, trainer in enumerate(self.trainers):
                    batch = trainer.sample()
                    look(seen, index, "the input", batch)
                    trainer.step(batch)
            finite = self.are_finite()
            if not all(finite):
                places = [place for seen in distributed.all_gather(seen) for place in seen]
                update = (finite.index(False), UPDATE)
                index, place = [*places, update][0]
                is_first = self.trainers[index].steps_taken == 1
                reason = cause(self.trainers[index], place, largest[index], is_first)
                return f"step {counting.steps_taken}: {place} is not finite; {reason}"
        return f"steps {first} to {last}: a loss or gradient is not finite, and was finite again"


@torch.no_grad()
def largest_parameter(trainer: Trainer) -> float:
    """Return the largest magnitude of what learns."""
    return max(float(p.abs().max()) for p in trainer.parameters() if p.numel())


def cause(trainer: Trainer, place: str, largest: float, is_first: bool) -> str:
    """Say what most likely led to a bad number.

    Args:
        trainer: in whose step it arose.
        place: where.
        largest: the largest parameter before the step.
        is_first: whether no step was taken before, so that nothing had learned yet.
    """
    if place.startswith("the input"):
        return "what the training learns from was wrong before it"
    if trainer.execution.precision_name == "float16":
        return "float16 ends at 65504, --precision float32 or bfloat16 does not"
    if place.startswith("the output") and place.endswith(f" of the {FROZEN}"):
        # Its weights do not learn, and generated pixels are bounded by a sigmoid.
        lower = trainer.execution.precision_name != "float32"
        or_more_bits = ", or choose --precision float32" if lower else ""
        itself = "the classifier itself turns images into it, whatever is learned"
        return f"{itself}; check its weights, --mean and --std{or_more_bits}"
    option = f"--{trainer.rate_option.replace('_', '-')}"
    if largest > GROWN:
        return f"weights had grown to {largest:.1e}, a lower {option} keeps them small"
    if is_first and place != UPDATE:
        return (
            "nothing had learned before it, so that the cause is the classifier, or a weight of "
            f"the loss that is too large; {SINGULARITIES}"
        )
    return f"steps are likely too long, a lower {option} shortens them"


Seen = list[tuple[int, str]]  # the number of a trainer, and the place of a bad number in it


def look(seen: Seen, index: int, place: str, value: Any) -> None:
    """Add a place to what was seen if one of its tensors holds a bad number."""
    for tensor in value if isinstance(value, tuple | list) else (value,):
        if isinstance(tensor, Tensor) and not bool(tensor.detach().isfinite().all()):
            seen.append((index, place))


@contextmanager
def watched(trainers: Sequence[Trainer]) -> Iterator[Seen]:
    """Give the list to which bad numbers are added as they arise in a step of some trainers."""
    seen: Seen = []
    with ExitStack() as stack:
        for index, trainer in enumerate(trainers):
            for model, module in trainer.models().items():
                for handle in hooks(seen, index, model, module):
                    stack.callback(handle.remove)
        yield seen


def hooks(seen: Seen, index: int, model: str, module: nn.Module) -> Iterator[RemovableHandle]:
    """Look at all outputs of a model's layers, and at all gradients of its parameters."""
    for name, layer in module.named_modules():
        if name:
            place = f"the output of {layer_name(name)} of the {model}"
            yield layer.register_forward_hook(
                lambda module, inputs, output, place=place: look(seen, index, place, output)
            )
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            place = f"the gradient of {layer_name(name)} of the {model}"
            yield parameter.register_hook(
                lambda gradient, place=place: look(seen, index, place, gradient)
            )


def layer_name(name: str) -> str:
    """Return a layer's name in its classifier, less those of what the classifier is wrapped in."""
    for wrapper in ("model.", "graph."):
        name = name.removeprefix(wrapper)
    return name.replace("matched_", "").replace(".layer.", ".")
