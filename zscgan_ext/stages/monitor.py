"""All that is done around the steps of a stage: log, progress, checkpoints, profiling, watching."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

from torch import Tensor
from tqdm import tqdm

from zscgan_ext import distributed
from zscgan_ext.stages.run import Run
from zscgan_ext.training.finite_numbers import FiniteNumbers, NonFiniteError
from zscgan_ext.training.trainer import Trainer

BAR_INTERVAL = 0.2  # seconds between two changes of a bar
SHORTEST = 1e-3  # seconds that a number of steps counts as, at least


class Progress:
    """Progress of one stage, used as a context manager.

    Args:
        stage: its name.
        steps: how many it has.
        log_interval: steps between two lines where there is no terminal.
    """

    def __init__(self, stage: str, steps: int, log_interval: int) -> None:
        self.stage = stage
        self.steps = steps
        self.log_interval = log_interval
        self.start = self.shown = time.perf_counter()
        self.steps_before: int | None = None  # taken before a run was resumed
        is_shown = sys.stderr.isatty() and distributed.rank() == 0
        self.bar = tqdm(total=steps, desc=stage, unit="step", disable=not is_shown)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()

    def is_due(self, step: int) -> bool:
        """Return True if a step, from 1, belongs into the log."""
        return step % self.log_interval == 0 or step in (1, self.steps)

    def wants(self, step: int) -> bool:
        """Return True if the values of a step, from 1, are due in the log or the bar."""
        if self.steps_before is None:
            self.steps_before = step - 1
        passed = time.perf_counter() - self.shown
        bar_is_due = not self.bar.disable and not 0 <= passed <= BAR_INTERVAL
        return self.is_due(step) or bar_is_due

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values that a step, from 1, measured."""
        texts = {name: f"{value:.4g}" for name, value in values.items()}
        self.shown = time.perf_counter()
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(texts, refresh=False)
        if self.bar.disable and self.is_due(step):
            # A clock may stand still, or be set back.
            seconds = max(time.perf_counter() - self.start, SHORTEST)
            rate = (step - (self.steps_before or 0)) / seconds
            shown = "  ".join(f"{name} {text}" for name, text in texts.items())
            left = (self.steps - step) / rate
            print(
                f"{self.stage} {step}/{self.steps}  {shown}  {rate:.1f} steps/s  {left:.0f} s left",
                flush=True,
            )


class StageMonitor:
    """Does all that belongs to the steps of a stage beside the steps themselves.

    It times them, shows and logs what they measure, profiles some, looks whether all numbers are
    finite, and writes checkpoints:

        with StageMonitor(run, "synthesis", trainer, seconds="synthesis") as monitor:
            for step in monitor.steps():
                values = trainer.step(trainer.sample())
                monitor.after_step(step, values)

    Args:
        run: that the stage belongs to.
        stage: its name, in checkpoints and in the log.
        trainer: takes the steps; resumes from the state that a checkpoint has of it.
        seconds: what the time is added to.
        label: what the stage is called where it is shown, if not its name.
        upstream: trainers, held already, that take a step before each of the trainer's.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        trainer: Trainer,
        *,
        seconds: str,
        label: str | None = None,
        upstream: Sequence[Trainer] = (),
    ) -> None:
        self.run = run
        self.stage = stage
        self.trainer = trainer
        self.seconds = seconds
        self.trainers = (*upstream, trainer)
        self.progress = Progress(label or stage, trainer.steps, run.config.log_interval)
        self.steps_here = 0  # taken since the run was started or resumed
        self.open = ExitStack()

    def __enter__(self) -> "StageMonitor":
        """Begin the stage, or resume it."""
        checkpoints = self.run.checkpoints
        self.open.enter_context(checkpoints.stage(self.stage))
        self.open.enter_context(self.run.results.timed(self.seconds))
        if self.run.profiler is not None:
            self.run.profiler.begin(self.stage, self.trainer.steps)
        self.open.enter_context(self.progress)
        checkpoints.hold(f"{self.stage}/training", self.trainer)
        self.finite_numbers = FiniteNumbers(
            self.trainers, checkpoints.snapshot, checkpoints.restore
        )
        checkpoints.before_write = self.check
        self.open.push(self.end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.open.__exit__(kind, error, traceback)

    def end(self, kind: type[BaseException] | None, *_: object) -> None:
        """Check once more, and end profiling, after the last step."""
        if kind is None:
            self.check()
            if self.run.profiler is not None:
                self.run.profiler.end()

    def steps(self) -> range:
        """Return the numbers, from 1, of the steps that were not taken yet."""
        return range(self.trainer.steps_taken + 1, self.trainer.steps + 1)

    def after_step(self, step: int, values: Tensor) -> None:
        """Do what is due after a step, which measured these values.

        Raises:
            NonFiniteError: if a number was not finite; a checkpoint from before was written.
            StoppedError: if a signal stopped the run; a checkpoint was written.
        """
        if self.progress.wants(step):
            self.report(step, values)
        if self.run.profiler is not None:
            self.run.profiler.after_step()
        self.run.checkpoints.count_step()
        self.steps_here += 1
        if self.steps_here % self.run.config.log_interval == 0:
            self.check()
        self.run.checkpoints.write_or_stop()

    def report(self, step: int, values: Tensor) -> None:
        """Show what a step measured, and log it where that is due; synchronizes."""
        measured = dict(zip(self.trainer.metrics, values.tolist(), strict=True))
        shown = {name.replace("_", " "): measured[name] for name in self.trainer.shown}
        self.progress.update(step, shown)
        if self.progress.is_due(step):
            self.run.log(self.stage, {"step": step, **measured})

    def check(self) -> None:
        """Look whether all numbers are finite.

        Raises:
            NonFiniteError: if one is not; a checkpoint from before was written.
        """
        try:
            self.finite_numbers.check()
        except NonFiniteError as error:
            self.run.checkpoints.write()
            raise NonFiniteError(f"{self.stage}: {error}") from None
