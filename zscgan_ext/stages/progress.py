"""Showing how a stage goes: a bar on a terminal, one line per log interval elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

from zscgan_ext import processes

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
        self.steps_before: int | None = None  # taken before a run went on from a checkpoint
        is_shown = sys.stderr.isatty() and processes.rank() == 0
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
        """Tell whether a step, from 1, belongs into the log."""
        return step % self.log_interval == 0 or step in (1, self.steps)

    def wants(self, step: int) -> bool:
        """Tell whether the values of a step, from 1, are worth waiting for: log, or due bar."""
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
