"""Watching that the numbers of a training stay finite, and finding where they ceased to be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from zscgan_ext import processes
from zscgan_ext.errors import InputError
from zscgan_ext.training.steps import Training

FROZEN = "classifier"  # as trainings name the model that does not learn
SINGULARITIES = (
    "look in the classifier for a root, logarithm or division at zero, from which a small number "
    "inside keeps away, such as 1e-6"
)
UPDATE = "the update of the weights"
GROWN = 1e3  # weights above this are a sign of steps that were too long


class NonFiniteError(InputError):
    """A loss or gradient was infinite or not a number; the training is back where all was good."""


class FiniteNumbers:
    """Looks now and then whether a training's numbers are finite.

    Looking waits for the device, a step does not. What went wrong in between is found by taking
    the steps since the last look again, with a look at every layer.

    Args:
        training: its loss, parameters and optimizer are looked at.
        snapshot: copies the state of all that the steps change.
        restore: puts it back.
        feeding: trainings that take a step of their own within each of its steps, and are looked
            at as well.
    """

    def __init__(
        self,
        training: Training,
        snapshot: Callable[[], Any],
        restore: Callable[[Any], None],
        feeding: Sequence[Training] = (),
    ) -> None:
        self.training = training
        self.trainings = (*feeding, training)
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
        last = self.training.steps_taken
        self.restore(self.good)
        message = self.find(last)
        self.restore(self.good)
        raise NonFiniteError(message)

    def are_finite(self) -> list[bool]:
        """Tell of each training whether its numbers are finite."""
        return [training.is_finite() for training in self.trainings]

    def find(self, last: int) -> str:
        """Take steps again, up to the last; say where the first bad number arises."""
        training = self.training
        for each in self.trainings:
            each.taken = each.take  # kernel by kernel, whatever was captured
            each.measured = each.measure
        first = training.steps_taken + 1
        while training.steps_taken < last:
            largest = [largest_parameter(each) for each in self.trainings]
            with watched(self.trainings) as seen:
                training.advance()
            finite = self.are_finite()
            if not all(finite):
                places = [place for seen in processes.of_all(seen) for place in seen]
                update = (finite.index(False), UPDATE)
                index, place = [*places, update][0]
                is_first = self.trainings[index].steps_taken == 1
                reason = cause(self.trainings[index], place, largest[index], is_first)
                return f"step {training.steps_taken}: {place} is not finite; {reason}"
        return f"steps {first} to {last}: a loss or gradient is not finite, and was finite again"


@torch.no_grad()
def largest_parameter(training: Training) -> float:
    """Return the largest magnitude of what learns."""
    return max(float(p.abs().max()) for p in training.parameters() if p.numel())


def cause(training: Training, place: str, largest: float, is_first: bool) -> str:
    """Say what most likely led to a bad number.

    Args:
        training: in whose step it arose.
        place: where.
        largest: the largest parameter before the step.
        is_first: whether no step was taken before, so that nothing had learned yet.
    """
    if place.startswith("the input"):
        return "what the training learns from was wrong before it"
    if training.execution.precision_name == "float16":
        return "float16 ends at 65504, --precision float32 or bfloat16 does not"
    if place.startswith("the output") and place.endswith(f" of the {FROZEN}"):
        # Its weights do not learn, and generated pixels are bounded by a sigmoid.
        lower = training.execution.precision_name != "float32"
        or_more_bits = ", or choose --precision float32" if lower else ""
        itself = "the classifier itself turns images into it, whatever is learned"
        return f"{itself}; check its weights, --mean and --std{or_more_bits}"
    option = f"--{training.rate_setting.replace('_', '-')}"
    if largest > GROWN:
        return f"weights had grown to {largest:.1e}, a lower {option} keeps them small"
    if is_first and place != UPDATE:
        return (
            "nothing had learned before it, so that the cause is the classifier, or a weight of "
            f"the loss that is too large; {SINGULARITIES}"
        )
    return f"steps are likely too long, a lower {option} shortens them"


Seen = list[tuple[int, str]]  # the number of a training, and the place of a bad number in it


@contextmanager
def watched(trainings: Sequence[Training]) -> Iterator[Seen]:
    """Give the list to which bad numbers are added as they arise in a step of some trainings."""
    seen: Seen = []
    with ExitStack() as stack:
        for index, training in enumerate(trainings):
            stack.enter_context(watched_by_hooks(training, index, seen))
        yield seen


@contextmanager
def watched_by_hooks(training: Training, index: int, seen: Seen) -> Iterator[None]:
    """Add the places of bad numbers to what was seen, as they arise in a step of a training."""
    handles = []

    def look(place: str, value: Any) -> None:
        tensors = value if isinstance(value, tuple | list) else (value,)
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not bool(tensor.detach().isfinite().all()):
                seen.append((index, place))

    def forward_hook(place: str) -> Callable[..., None]:
        return lambda module, inputs, output: look(place, output)

    def gradient_hook(place: str) -> Callable[[Tensor], None]:
        return lambda gradient: look(place, gradient)

    for model, module in training.models().items():
        for name, layer in module.named_modules():
            if name:
                place = f"the output of {layer_name(name)} of the {model}"
                handles.append(layer.register_forward_hook(forward_hook(place)))
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                place = f"the gradient of {layer_name(name)} of the {model}"
                handles.append(parameter.register_hook(gradient_hook(place)))
    inputs = training.inputs

    def looked_at_inputs() -> tuple[Tensor, ...]:
        given = inputs()
        look("the input", given)
        return given

    training.inputs = looked_at_inputs  # type: ignore[method-assign]
    try:
        yield
    finally:
        del training.inputs  # the method of the class again
        for handle in handles:
            handle.remove()


def layer_name(name: str) -> str:
    """Return a layer's name in its classifier, less those of what the classifier is wrapped in."""
    for wrapper in ("model.", "graph."):
        name = name.removeprefix(wrapper)
    return name.replace("matched_", "").replace(".layer.", ".")
