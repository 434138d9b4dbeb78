"""A trainer: what learns, the optimizer, and a step as it is executed.

A stage draws a batch, takes a step and looks at what it measured, as in
`values = trainer.step(trainer.sample())`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from zscgan_ext import distributed
from zscgan_ext.errors import first_line, one_line
from zscgan_ext.training.cuda_graphs import GraphedStep, StreamCapture
from zscgan_ext.training.execution import Execution

CHANGING_SCALING = {"scale": float, "_growth_tracker": int}  # of the state of a GradScaler


def adam_state(state: Mapping[str, Tensor], parameter: nn.Parameter) -> dict[str, Tensor]:
    """Copy what Adam keeps of a parameter, laid out in memory as the parameter is.

    Raises:
        ValueError: if it is of something else, which Adam's fused kernel would not notice.
    """
    step, moments = state["step"], {name: state[name] for name in ("exp_avg", "exp_avg_sq")}
    if step.shape != () or any(moment.shape != parameter.shape for moment in moments.values()):
        raise ValueError(f"the optimizer's state is not of a parameter {list(parameter.shape)}")
    alike = {name: torch.empty_like(parameter.detach()).copy_(m) for name, m in moments.items()}
    return {"step": step.to(torch.float32, copy=True), **alike}


def rate_as_read(learning_rate: float, execution: Execution) -> float | Tensor:
    """Return a rate as a step reads it: one that is captured does so from memory.

    There the schedule changes it.
    """
    if not execution.cuda_graphs:
        return learning_rate
    return torch.tensor(learning_rate, device=execution.device)


class ParameterGroup(NamedTuple):
    """Parameters that learn at one rate."""

    parameters: Sequence[Tensor]
    learning_rate: float  # Adam's, at the start


class Trainer(ABC):
    """Parameters that learn, one step after the other.

    A step never synchronizes with its device: it can be queued ahead of the device, profiled, and
    captured in a CUDA graph. What it measures stays there until somebody asks, and so does whether
    every loss was finite.

    Args:
        groups: what learns, and at which rates; they fall to zero along a cosine.
        betas: Adam's.
        steps: how many there are in all, the length of the cosine.
        execution: how steps are executed.
    """

    metrics: ClassVar[tuple[str, ...]]  # names of the values that a step measures, the loss first
    shown: ClassVar[tuple[str, ...]]  # those that are shown while a stage runs
    rate_option: ClassVar[str]  # the option that the learning rate comes from

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        betas: tuple[float, float],
        steps: int,
        execution: Execution,
    ) -> None:
        self.execution = execution
        self.steps = steps
        self.precision = execution.new_precision()
        self.optimizer = torch.optim.Adam(
            [
                {"params": group.parameters, "lr": rate_as_read(group.learning_rate, execution)}
                for group in groups
            ],
            betas=betas,
            fused=True,
            capturable=execution.cuda_graphs,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.graph: GraphedStep | None = None
        if execution.cuda_graphs:
            self.graph = GraphedStep(self.learn, StreamCapture(torch.device(execution.device)))
        self.is_to_be_compiled = execution.compile
        self.compiled_loss: Callable[..., tuple[Tensor, Tensor]] | None = None
        self.steps_taken = 0
        self.losses_are_finite = torch.ones((), dtype=torch.bool, device=execution.device)

    @abstractmethod
    def sample(self) -> tuple[Tensor, ...]:
        """Draw the batch that one step learns from; the shapes are always the same."""

    @abstractmethod
    def loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the values of `metrics`, [count] without gradient."""

    def models(self) -> dict[str, nn.Module]:
        """Return the models that take part in a step, by name, in the order they are run."""
        return {}

    def step(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Learn from a batch; return the values of `metrics`, which the next step overwrites."""
        if self.is_to_be_compiled:
            self.compile(batch)
        values = self.learn(*batch) if self.graph is None else self.graph(*batch)
        self.schedule.step()
        self.steps_taken += 1
        return values

    def learn(self, *batch: Tensor) -> Tensor:
        """Take one step of the optimizer, which a CUDA graph can hold; return the values."""
        loss, values = (self.compiled_loss or self.loss)(*batch)
        self.losses_are_finite.logical_and_(loss.detach().isfinite())
        # A capture that failed leaves gradients that were never computed.
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.step(loss, self.optimizer)
        return values

    def compile(self, batch: tuple[Tensor, ...]) -> None:
        """Compile both passes on this batch; run them eagerly, and say why, where that fails."""
        self.is_to_be_compiled = False
        self.compiled_loss = torch.compile(self.loss)
        try:
            self.compiled_loss(*batch)[0].backward()
        except Exception as error:
            self.compiled_loss = None
            print(f"not compiled: {one_line(first_line(error))}", flush=True)
        self.optimizer.zero_grad(set_to_none=True)

    def run_eagerly(self) -> None:
        """Run kernel by kernel from now on, whatever was captured or compiled."""
        self.graph, self.compiled_loss, self.is_to_be_compiled = None, None, False

    def parameters(self) -> list[nn.Parameter]:
        """Return what learns."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def is_finite(self) -> bool:
        """Return True if all numbers of all processes were finite so far; synchronizes.

        A gradient that was not leaves its mark in the optimizer or in the parameters.
        """
        kept = [v for state in self.optimizer.state.values() for v in state.values()]
        tensors = [*self.parameters(), *kept]
        finite = [t.detach().isfinite().all() for t in tensors if isinstance(t, Tensor)]
        flags = [flag.to(self.losses_are_finite.device) for flag in finite]
        is_finite = bool(torch.stack([self.losses_are_finite, *flags]).all())
        return not distributed.agree(not is_finite)[0]

    def state_dict(self) -> dict[str, Any]:
        """Return what steps change beside that which learns: optimizer, rates, loss scaling."""
        scaling = self.precision.scaler.state_dict()
        return {
            "steps_taken": self.steps_taken,
            "learning_rates": [float(group["lr"]) for group in self.optimizer.param_groups],
            "optimizer": {str(i): own for i, own in self.optimizer.state_dict()["state"].items()},
            "loss_scaling": {name: scaling[name] for name in CHANGING_SCALING if name in scaling},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; a CUDA graph that was captured must not be replayed after it.

        Raises:
            ValueError: if the state is of another trainer.
        """
        steps_taken, rates = int(state["steps_taken"]), state["learning_rates"]
        if not 0 <= steps_taken <= self.steps:
            raise ValueError(f"{steps_taken} of {self.steps} steps were taken")
        own_rates = [group["lr"] for group in self.optimizer.param_groups]
        parameters = self.parameters()
        states = {int(i): adam_state(s, parameters[int(i)]) for i, s in state["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        for group, own, rate in zip(self.optimizer.param_groups, own_rates, rates, strict=True):
            # A captured step reads the rate where it is.
            group["lr"] = own.fill_(rate) if isinstance(own, Tensor) else float(rate)
        position = {"last_epoch": steps_taken, "_step_count": steps_taken + 1}
        self.schedule.load_state_dict({**self.schedule.state_dict(), **position})
        scaler, scaling = self.precision.scaler, self.precision.scaler.state_dict()
        kinds = {name: kind for name, kind in CHANGING_SCALING.items() if name in scaling}
        scaling |= {name: kind(state["loss_scaling"][name]) for name, kind in kinds.items()}
        scaler.load_state_dict(scaling)
        self.steps_taken = steps_taken
        self.losses_are_finite.fill_(True)
