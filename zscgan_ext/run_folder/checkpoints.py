"""Checkpoints of a run: what they hold, when they are written, and resuming from one.

A run consists of stages. Whatever learns or draws random numbers is held under a name, and its
state is in each checkpoint from then on. In a run that resumes from a checkpoint, holding an object
puts it back into that state, and finished stages are left out.
"""

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from zscgan_ext import distributed
from zscgan_ext.config.values import Interval
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.run_folder.checkpoint_file import (
    LAYOUT,
    State,
    checkpoint_files,
    number_of,
    write_checkpoint,
)
from zscgan_ext.run_folder.files import CHECKPOINTS, RunFolder
from zscgan_ext.training.stop_signals import StoppedError, StopSignals


class DefaultRng:
    """Torch's default random numbers: those of the CPU and, in use, of every CUDA device."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each device, uint8 tensors."""
        uses_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if uses_cuda else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; devices that are not there are left out."""
        torch.set_rng_state(state["cpu"])
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index, numbers in enumerate(state["cuda"][:devices]):
            torch.cuda.set_rng_state(numbers, index)


class RngState:
    """A random number generator."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, a uint8 tensor."""
        return {"state": self.rng.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a state."""
        self.rng.set_state(state["state"])


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
    """Writes the checkpoints of a run, and restores what it holds from the one it resumes from.

    Args:
        run: the folder of the run; None for one that writes no checkpoints.
        every: steps or seconds between two checkpoints; None for only when a signal stops the run.
        keep: checkpoints that are kept, the newest ones.
        facts: what a resumed run must have in common, as JSON has it.
        loaded: the checkpoint to resume from.
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
        self.default_rng = DefaultRng()
        self.held: dict[str, Stateful] = {}
        self.giving_copies: set[str] = set()
        self.rngs: dict[str, RngState] = {}
        loaded = loaded or {}
        self.finished: list[str] = list(loaded.get("finished", []))
        self.steps: int = loaded.get("steps", 0)
        rngs_of_all: list[State] = loaded.get("rngs_of_all", [])
        # With another number of processes their random numbers begin anew.
        self.begins_rngs_anew = len(rngs_of_all) not in (0, distributed.world_size())
        rngs = {} if self.begins_rngs_anew or not loaded else rngs_of_all[distributed.rank()]
        self.loaded: State = {**loaded.get("held", {}), **rngs.get("rngs", {})}
        self.loaded_default_rng: State | None = rngs.get("default_rng")
        self.takes_no_step_yet = True
        self.steps_at_last: int = self.steps
        self.time_of_last = time.monotonic()
        files = [] if self.folder is None else checkpoint_files(self.folder)
        self.number = number_of(files[-1]) if files else 0
        self.before_write: Callable[[], None] | None = None
        # Random numbers from before what cannot be resumed in its middle; None between steps.
        self.rngs_before: list[State] | None = None

    # ---- what checkpoints hold -------------------------------------------------------------------

    def hold(self, name: str, holder: Held, gives_copies: bool = False) -> Held:
        """Hold an object, put back into the state of the checkpoint that the run resumes from.

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

    def hold_rng(self, name: str, rng: torch.Generator) -> torch.Generator:
        """Hold a random number generator, as `hold` does; it may be drawn from in all stages."""
        self.rngs[name] = RngState(rng)
        if self.begins_rngs_anew and self.steps:
            rng.manual_seed(self._seed(name))
        self._restore(name, self.rngs[name])
        return rng

    def release(self, name: str) -> None:
        """Hold an object no longer."""
        self.held.pop(name, None)
        self.rngs.pop(name, None)
        self.loaded.pop(name, None)

    def _restore(self, name: str, holder: Stateful) -> None:
        if name in self.loaded:
            with fitting(name):
                holder.load_state_dict(self.loaded.pop(name))
        self._restore_default_rng()

    def _restore_default_rng(self) -> None:
        """Undo what making objects drew, until the first step that the run takes."""
        if self.takes_no_step_yet and self.begins_rngs_anew:
            torch.manual_seed(self._seed("default"))
        elif self.takes_no_step_yet and self.loaded_default_rng is not None:
            with fitting("torch's random numbers"):
                self.default_rng.load_state_dict(self.loaded_default_rng)

    def _seed(self, name: str) -> int:
        return distributed.seed_for(self.facts["seed"], self.steps, name)

    def position(self) -> str:
        """Say where the run stands."""
        if not self.steps and not self.finished:
            return "no checkpoint yet, the run starts from the beginning"
        return f"after step {self.steps} of all stages, finished:  " + (
            ", ".join(self.finished) or "none"
        )

    # ---- the course of a run ---------------------------------------------------------------------

    def is_finished(self, stage: str) -> bool:
        """Return True if a stage was finished, before this checkpoint or since."""
        return stage in self.finished

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enclose a stage that is not finished; afterwards it is.

        Outside its steps a stage may be interrupted only where `interruptible` says so; it then
        begins anew.
        """
        self._restore_default_rng()
        self.rngs_before = self._rngs_of_all()
        yield
        self.takes_no_step_yet = False
        self.finished.append(name)
        self.before_write = None
        for held in [*self.held, *self.rngs]:
            if held.startswith(f"{name}/"):
                self.release(held)
        self.rngs_before = self._rngs_of_all()
        self.write_or_stop()

    def count_step(self) -> None:
        """Count a step that was taken; all that is held has its state from after the step."""
        self.takes_no_step_yet = False
        self.rngs_before = None
        self.steps += 1

    def write_or_stop(self) -> None:
        """Write a checkpoint if one is due; stop here if a signal asked any process for it.

        Raises:
            StoppedError: after the checkpoint was written.
        """
        stops, is_due = distributed.agree(bool(self.signals.received), self.is_due())
        if stops or is_due:
            if self.before_write is not None:
                self.before_write()
            self.write()
        if stops:
            raise StoppedError(self.signals.received or signal.SIGTERM)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Enclose what takes long, has no steps and changes nothing that is held.

        A checkpoint is written also where an error ends it, such as images that are gone: what was
        learned before is not lost. Of many processes none knows what the others do then.

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
        except InputError:
            if distributed.world_size() == 1 and self.steps > self.steps_at_last:
                with suppress(InputError):  # the first error is to be told
                    self.write()
            raise

    # ---- writing ---------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Return True if the interval between two checkpoints has passed."""
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
        return {"steps": self.steps, "held": copies, **self._rng_state()}

    def restore(self, snapshot: State) -> None:
        """Put all that was held when a snapshot was made, and still is, back into its state."""
        self.steps = snapshot["steps"]
        states = {**snapshot["held"], **snapshot["rngs"]}
        for name, holder in [*self.held.items(), *self.rngs.items()]:
            if name in states:
                holder.load_state_dict(states[name])
        self.default_rng.load_state_dict(snapshot["default_rng"])

    def write(self) -> None:
        """Write a checkpoint and delete those before the last ones; the first process does.

        Raises:
            InputError: if it cannot be written; those before it are still there then.
        """
        state = {
            "layout": LAYOUT,
            "facts": self.facts,
            "finished": self.finished,
            "steps": self.steps,
            "held": {name: holder.state_dict() for name, holder in self.held.items()},
            "rngs_of_all": self.rngs_before or self._rngs_of_all(),
        }
        self.number += 1
        self.steps_at_last, self.time_of_last = self.steps, time.monotonic()
        if self.folder is None or distributed.rank() > 0:
            return
        write_checkpoint(self.folder, self.number, state, None if self.own is None else self._write)
        if self.own is not None:
            old = checkpoint_files(self.folder)[: -self.keep]
            self.own.delete(name_in_run(file) for file in old)

    def _write(self, file: Path, data: bytes) -> None:
        assert self.own is not None
        self.own.write_file(name_in_run(file), data)

    def _rngs_of_all(self) -> list[State]:
        """Return the random numbers of all processes, which have to call this together."""
        return distributed.all_gather(self._rng_state())

    def _rng_state(self) -> State:
        return {
            "default_rng": self.default_rng.state_dict(),
            "rngs": {name: rng.state_dict() for name, rng in self.rngs.items()},
        }
