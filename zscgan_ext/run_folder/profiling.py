"""A few steps of each training under torch's profiler: a Chrome trace and a table by op."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from zscgan_ext.run_folder.files import PROFILE, TRACE, RunFolder
from zscgan_ext.run_folder.whole_file import one_line_errors

SKIPPED_STEPS = 5  # libraries choose algorithms, CUDA graphs are captured
PROFILED_STEPS = 3
ROWS_OF_TABLE = 40


class StepProfiler:
    """Collects what the profiler saw of each stage, and writes it to the folder of a run.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.trace: dict[str, Any] = {}
        self.tables: list[str] = []

    def begin(self, stage: str, steps: int) -> None:
        """Begin a stage of so many steps, some of which are profiled."""
        self.stage = stage
        self.first = min(SKIPPED_STEPS, steps - min(PROFILED_STEPS, steps))
        self.last = self.first + min(PROFILED_STEPS, steps)
        self.taken = 0
        self.profiler = profile(activities=self.activities)
        if self.first == 0 and steps:
            self.profiler.start()

    def after_step(self) -> None:
        """Begin or end profiling, where the step that was taken is the one before or the last."""
        self.taken += 1
        if self.taken == self.first:
            self.profiler.start()
        if self.taken == self.last:
            self.stop()

    def end(self) -> None:
        """End a stage, maybe early: a resumed run may have few steps left."""
        if self.first <= self.taken < self.last:
            self.stop()

    def stop(self) -> None:
        """Keep what was profiled."""
        self.profiler.stop()
        self.add(f"{self.stage}, {self.taken - self.first} steps", self.profiler)

    @property
    def activities(self) -> list[ProfilerActivity]:
        """What runs where the steps do, besides the CPU."""
        on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        return [ProfilerActivity.CPU, *on_gpu]

    def add(self, title: str, profiler: profile) -> None:
        """Keep the events and the table of one stage."""
        sort_by = f"self_{self.device.type}_time_total"
        table = profiler.key_averages().table(sort_by=sort_by, row_limit=ROWS_OF_TABLE)
        self.tables.append(f"{title}\n{table}")
        with one_line_errors(Path(TRACE)), tempfile.TemporaryDirectory() as folder:
            file = Path(folder, TRACE)
            profiler.export_chrome_trace(str(file))
            trace = json.loads(file.read_text())
        trace.pop("traceName", None)  # where it was written
        events = self.trace.get("traceEvents", [])
        self.trace = trace | {"traceEvents": events + trace["traceEvents"]}

    def write(self, folder: RunFolder) -> None:
        """Write `trace.json`, which chrome://tracing and Perfetto show, and `profile.txt`."""
        folder.write_text(TRACE, json.dumps(self.trace))
        folder.write_text(PROFILE, "\n\n".join(self.tables) + "\n")
