"""Checkpoints of a run: what they hold, when they are written, and going on from one.

A run consists of stages. Whatever learns or draws random numbers is held under a name, and its
state is in each checkpoint from then on. In a run that goes on from a checkpoint, holding an object
puts it back into that state, and finished stages are left out.
"""

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from zscgan_ext import processes
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.run_folder.checkpoint_file import (
    State,
    checkpoint_files,
    number_of,
    write_checkpoint,
)
from zscgan_ext.run_folder.files import CHECKPOINTS, RunFolder
from zscgan_ext.run_folder.random_state import DefaultRandom, OwnRandom
from zscgan_ext.settings.values import Interval
from zscgan_ext.training.steps import nothing
from zscgan_ext.training.stop_signals import StoppedError, StopSignals


class Stateful(Protocol):
    """What can be held: modules, optimizers, trainings."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return a state: nested mappings with text keys, lists, tensors, numbers and text."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from a state, its tensors on the CPU."""


Held = TypeVar("Held", bound=Stateful)


def name_in_run(file: Path) -> str:
    """Return a checkpoint's path in the folder of its run."""
    return f"{CHECKPOINTS}/{file.name}"


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """Turn what goes wrong when a state is put back into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a state may hold anything, and what it is put into is of torch
        message = f"resume: the checkpoint does not fit {name} ({first_line(error)})"
        raise InputError(message) from error


class Checkpoints:
    """Writes the checkpoints of a run, and restores what it holds from the one it goes on from.

    Args:
        run: the folder of the run; None for one that writes no checkpoints.
        every: steps or seconds between two checkpoints; None for only when a signal stops the run.
        keep: checkpoints that are kept, the newest ones.
        facts: what a run that goes on must have in common, as JSON has it.
        loaded: the checkpoint to go on from.
        own: the same folder, which knows what the run has written; without it nothing is deleted.
    """

    def __init__(
        self,
        run: Path | None,
        every: Interval | None,
        keep: int,
        facts: Mapping[str, Any],
        loaded: State | None = None,
        own: RunFolder | None = None,
    ) -> None:
        self.own = own
        self.folder = None if run is None else run / CHECKPOINTS
        self.every = every
        self.keep = keep
        self.facts = facts
        self.signals = StopSignals()
        self.default_random = DefaultRandom()
        self.held: dict[str, Stateful] = {}
        self.giving_copies: set[str] = set()
        self.random: dict[str, OwnRandom] = {}
        loaded = loaded or {}
        self.finished: list[str] = list(loaded.get("finished", []))
        self.steps: int = loaded.get("steps", 0)
        random_of_all: list[State] = loaded.get("random_of_all", [])
        # With another number of processes their random numbers begin anew.
        self.begins_random_anew = len(random_of_all) not in (0, processes.count())
        random = {} if self.begins_random_anew or not loaded else random_of_all[processes.rank()]
        self.loaded: State = {**loaded.get("held", {}), **random.get("random", {})}
        self.loaded_default_random: State | None = random.get("default_random")
        self.takes_no_step_yet = True
        self.steps_at_last: int = self.steps
        self.time_of_last = time.monotonic()
        files = [] if self.folder is None else checkpoint_files(self.folder)
        self.number = number_of(files[-1]) if files else 0
        self.before_write: Callable[[], None] = nothing
        # Random numbers from before what cannot be resumed in its middle; None between steps.
        self.random_before: list[State] | None = None

    # ---- what checkpoints hold -------------------------------------------------------------------

    def hold(self, name: str, holder: Held, gives_copies: bool = False) -> Held:
        """Hold an object, put back into the state of the checkpoint that the run goes on from.

        Args:
            name: unique; one that begins with a stage and a slash is released with that stage.
            holder: changes in no stage but with its steps, or when it is held.
            gives_copies: whether its state stays as it is when the object changes later.
        """
        if gives_copies:
            self.giving_copies.add(name)
        self.held[name] = holder
        self._restore(name, holder)
        return holder

    def hold_random(self, name: str, random: torch.Generator) -> torch.Generator:
        """Hold random numbers, as `hold` does; they may be drawn from in all stages."""
        self.random[name] = OwnRandom(random)
        if self.begins_random_anew and self.steps:
            random.manual_seed(self._seed(name))
        self._restore(name, self.random[name])
        return random

    def release(self, name: str) -> None:
        """Hold an object no longer."""
        self.held.pop(name, None)
        self.random.pop(name, None)
        self.loaded.pop(name, None)

    def _restore(self, name: str, holder: Stateful) -> None:
        if name in self.loaded:
            with fitting(name):
                holder.load_state_dict(self.loaded.pop(name))
        self._restore_default_random()

    def _restore_default_random(self) -> None:
        """Undo what making objects drew, until the first step that the run takes."""
        if self.takes_no_step_yet and self.begins_random_anew:
            torch.manual_seed(self._seed("default"))
        elif self.takes_no_step_yet and self.loaded_default_random is not None:
            with fitting("torch's random numbers"):
                self.default_random.load_state_dict(self.loaded_default_random)

    def _seed(self, name: str) -> int:
        return processes.seed_for(self.facts["seed"], self.steps, name)

    def position(self) -> str:
        """Say where the run stands."""
        if not self.steps and not self.finished:
            return "no checkpoint yet, the run starts from the beginning"
        return f"goes on after step {self.steps} of all stages, finished are " + (
            ", ".join(self.finished) or "none"
        )

    # ---- the course of a run ---------------------------------------------------------------------

    def is_finished(self, stage: str) -> bool:
        """Tell whether a stage was finished, before this checkpoint or since."""
        return stage in self.finished

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enclose a stage that is not finished; afterwards it is.

        Outside its steps a stage may be interrupted only where `interruptible` says so; it then
        begins anew.
        """
        self._restore_default_random()
        self.random_before = self._random_of_all()
        yield
        self.takes_no_step_yet = False
        self.finished.append(name)
        self.before_write = nothing
        for held in [*self.held, *self.random]:
            if held.startswith(f"{name}/"):
                self.release(held)
        self.random_before = self._random_of_all()
        self.write_or_stop()

    def count_step(self) -> None:
        """Count a step that was taken; all that is held has its state from after the step."""
        self.takes_no_step_yet = False
        self.random_before = None
        self.steps += 1

    def write_or_stop(self) -> None:
        """Write a checkpoint if one is due; stop here if a signal asked any process for it.

        Raises:
            StoppedError: after the checkpoint was written.
        """
        stops, is_due = processes.agree(bool(self.signals.received), self.is_due())
        if stops or is_due:
            self.before_write()
            self.write()
        if stops:
            raise StoppedError(self.signals.received or signal.SIGTERM)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Enclose what takes long, has no steps and changes nothing that is held.

        Raises:
            StoppedError: at any point, after a checkpoint was written.
        """
        try:
            with self.signals.interruptible():
                yield
            self.takes_no_step_yet = False  # what it drew is not to be undone
        except StoppedError:
            self.write()
            raise

    # ---- writing ---------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Tell whether the interval between two checkpoints has passed."""
        if self.every is None:
            return False
        if self.every.steps is not None:
            return self.steps >= self.steps_at_last + self.every.steps
        now = time.monotonic()
        if now < self.time_of_last:
            self.time_of_last = now  # or the next one would come when the clock is where it was
            print("warning: the clock was set back; a checkpoint is written now", flush=True)
            return True
        return now >= self.time_of_last + self.every.seconds

    def snapshot(self) -> State:
        """Return a copy of the state of all that is held, between two steps."""
        held = {name: holder.state_dict() for name, holder in self.held.items()}
        live = {name: state for name, state in held.items() if name not in self.giving_copies}
        copies = {**held, **copy.deepcopy(live)}
        return {"steps": self.steps, "held": copies, **self._random_state()}

    def restore(self, snapshot: State) -> None:
        """Put all that was held when a snapshot was made, and still is, back into its state."""
        self.steps = snapshot["steps"]
        states = {**snapshot["held"], **snapshot["random"]}
        for name, holder in [*self.held.items(), *self.random.items()]:
            if name in states:
                holder.load_state_dict(states[name])
        self.default_random.load_state_dict(snapshot["default_random"])

    def write(self) -> None:
        """Write a checkpoint and delete those before the last ones; the first process does.

        Raises:
            InputError: if it cannot be written; those before it are still there then.
        """
        state = {
            "facts": self.facts,
            "finished": self.finished,
            "steps": self.steps,
            "held": {name: holder.state_dict() for name, holder in self.held.items()},
            "random_of_all": self.random_before or self._random_of_all(),
        }
        self.number += 1
        self.steps_at_last, self.time_of_last = self.steps, time.monotonic()
        if self.folder is None or processes.rank() > 0:
            return
        write_checkpoint(self.folder, self.number, state, self._claim)
        if self.own is not None:
            old = checkpoint_files(self.folder)[: -self.keep]
            self.own.delete(name_in_run(file) for file in old)

    def _claim(self, file: Path) -> None:
        if self.own is not None:
            self.own.claim(name_in_run(file))

    def _random_of_all(self) -> list[State]:
        """Return the random numbers of all processes, which have to call this together."""
        return processes.of_all(self._random_state())

    def _random_state(self) -> State:
        return {
            "default_random": self.default_random.state_dict(),
            "random": {name: random.state_dict() for name, random in self.random.items()},
        }
