"""A run: what its stages share."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from zscgan_ext import processes
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.errors import one_line
from zscgan_ext.images.datasets import Images
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.quantization.conversion import student_of
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.run_folder.files import LOG, RunFolder
from zscgan_ext.run_folder.profiling import StepProfiler
from zscgan_ext.run_folder.tensorboard_log import TensorboardLog
from zscgan_ext.settings.config import Settings
from zscgan_ext.settings.values import resolve_device
from zscgan_ext.stages.stage_steps import StageSteps
from zscgan_ext.training.execution import Execution, choose_execution
from zscgan_ext.training.steps import Training, nothing


class RandomStream(IntEnum):
    """What random numbers are for: each has its own, which no other disturbs."""

    GENERATOR_LEARNING = 1
    SAMPLES = 2
    NOISE_IMAGES = 3
    GENERATED_IMAGES = 4
    DIVERSITY = 6
    PROBES = 7
    ALTERNATING = 8


STAGES = ("synthesis", "calibration", "fine_tuning", "evaluation")


@dataclass
class Run:
    """What the stages of one run share; checkpoints hold what was measured so far."""

    settings: Settings
    device: torch.device
    execution: Execution
    classifier: Classifier
    evaluation: Images | None
    reference: Images | None
    folder: RunFolder
    profiler: StepProfiler | None
    tensorboard: TensorboardLog | None
    seconds: dict[str, float]
    logits: dict[str, Tensor]  # [N, num_classes] of each row, on the evaluation images
    diversity: dict[str, Any]  # of generated images, and of real ones
    first_ranges: dict[str, Any]  # by row: which were chosen, and how far all are
    checkpoints: Checkpoints
    warnings: list[str]
    start: float  # of time.perf_counter, less what the run took before it went on
    timing: tuple[str, float] | None = None  # what `timed` encloses, and since when

    def shared_random(self, stream: int) -> torch.Generator:
        """Return a stream of random numbers, one of `RandomStream` or a number of one's own."""
        return torch.Generator(self.device).manual_seed(1000 * self.settings.seed + stream)

    def random(self, stream: int) -> torch.Generator:
        """Return a stream of random numbers that differs from process to process."""
        return torch.Generator(self.device).manual_seed(
            self.own_seed(1000 * self.settings.seed + stream)
        )

    def own_seed(self, seed: int) -> int:
        """Turn a seed into that of this process; the only process keeps it."""
        return seed if processes.count() == 1 else processes.seed_for(seed)

    def separate_processes(self) -> None:
        """Let the noise in the generator, so far the same, differ from process to process."""
        if processes.count() > 1:
            torch.manual_seed(processes.seed_for(self.settings.seed))

    def log(self, stage: str, values: Mapping[str, Any]) -> None:
        """Keep what one step of a stage measured."""
        self.folder.append_jsonl(LOG, {"stage": stage, **values})
        if self.tensorboard is not None:
            self.tensorboard.scalars(stage, values)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of what it encloses to a stage."""
        self.timing = stage, time.perf_counter()
        yield
        self.seconds = self.seconds_so_far()
        self.timing = None

    def seconds_so_far(self) -> dict[str, float]:
        """Return the time of all stages, that of an unfinished one included."""
        if self.timing is None:
            return self.seconds
        stage, start = self.timing
        return {**self.seconds, stage: self.seconds[stage] + time.perf_counter() - start}

    def warn(self, warnings: Iterable[str]) -> None:
        """Print new warnings, a line each, and keep them for `metrics.json`."""
        for warning in warnings:
            if warning not in self.warnings:
                print(f"warning: {one_line(warning)}", flush=True)
                self.warnings.append(warning)

    def total_seconds(self) -> float:
        """Return the time of the whole run so far."""
        return time.perf_counter() - self.start

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {
            "seconds": self.seconds_so_far(),
            "total_seconds": self.total_seconds(),
            "logits": dict(self.logits),
            "diversity": self.diversity,
            "first_ranges": self.first_ranges,
            "warnings": list(self.warnings),
            "log": self.folder.read_text(LOG),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the log loses what came after it.

        Raises:
            ValueError: if the state is of a run of other images.
        """
        needed = (len(self.evaluation or ()), self.classifier.num_classes)
        for row, logits in state["logits"].items():
            if tuple(logits.shape) != needed or "float" not in state["logits"]:
                raise ValueError(f"logits of {row} are {list(logits.shape)}, not {list(needed)}")
        self.logits.update(state["logits"])
        self.seconds.update({stage: float(state["seconds"][stage]) for stage in STAGES})
        self.start = time.perf_counter() - float(state["total_seconds"])
        self.diversity = json.loads(json.dumps(state["diversity"]))
        self.first_ranges = json.loads(json.dumps(state["first_ranges"]))
        self.warnings[:] = map(str, state["warnings"])
        self.folder.write_text(LOG, state["log"])

    def profiled(self, stage: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
        """Profile steps of a training if that is wanted; give what to call after each step."""
        if self.profiler is None:
            return nullcontext(nothing)
        return self.profiler.stage(stage, steps)

    @contextmanager
    def steps_of(
        self, stage: str, steps: int, feeding: Sequence[Training] = ()
    ) -> Iterator[StageSteps]:
        """Profile, watch and checkpoint the steps of a training; give what to call around them.

        Args:
            stage: its name.
            steps: how many it has.
            feeding: trainings that take a step within each of them.
        """
        with self.profiled(stage, steps) as profiled_step:
            stage_steps = StageSteps(
                stage, self.checkpoints, self.settings.log_interval, profiled_step, feeding
            )
            yield stage_steps
            stage_steps.check()


def new_run(settings: Settings, classifier: Classifier, folder: RunFolder) -> Run:
    """Start a run of a classifier, which is moved to the device, without any real images.

    From here on random numbers depend on the seed alone.
    """
    device = resolve_device(settings.device)
    execution = choose_execution(settings, device)
    lay_out(classifier.model.to(device), execution.memory_format)
    torch.manual_seed(settings.seed)
    seconds = dict.fromkeys(STAGES, 0.0)
    return Run(
        settings=settings,
        device=device,
        execution=execution,
        classifier=classifier,
        evaluation=None,
        reference=None,
        folder=folder,
        profiler=None,
        tensorboard=None,
        seconds=seconds,
        logits={},
        diversity={},
        first_ranges={},
        checkpoints=checkpoints_of(folder, settings),
        warnings=[],
        start=time.perf_counter(),
    )


def run_with(run: Run, **changes: Any) -> Run:
    """Return a run of the same classifier and images with other settings, nothing of it done yet.

    Args:
        run: to start from; it stays as it is.
        changes: of its settings, such as `bits`.
    """
    return replace(
        run,
        settings=replace(run.settings, **changes),
        seconds=dict.fromkeys(STAGES, 0.0),
        logits={},
        diversity={},
        first_ranges={},
        warnings=[],
        checkpoints=checkpoints_of(run.folder, run.settings),
    )


def checkpoints_of(folder: RunFolder, settings: Settings) -> Checkpoints:
    """Return checkpoints that are written only where the run stops."""
    return Checkpoints(folder.of_checkpoints(), None, settings.keep_checkpoints, {}, own=folder)


def new_student(
    settings: Settings, classifier: Classifier, execution: Execution
) -> QuantizedClassifier:
    """Convert the classifier to the wanted scheme, on its own device."""
    student = student_of(settings, classifier)
    return lay_out(student, execution.memory_format)
