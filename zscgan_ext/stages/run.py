"""A run: what its stages share, which is fixed, and its results, which grow."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from zscgan_ext import distributed
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.errors import one_line
from zscgan_ext.images.datasets import Images
from zscgan_ext.images.digest import FileVersions
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.quantization.conversion import student_of
from zscgan_ext.quantization.layer_widths import widths_described
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.run_folder.files import LOG, RunFolder
from zscgan_ext.run_folder.made_with import WIDTHS, MadeWith, digest_of_widths
from zscgan_ext.run_folder.profiling import StepProfiler
from zscgan_ext.run_folder.tensorboard_log import TensorboardLog
from zscgan_ext.stages.variants import FLOAT, VARIANTS
from zscgan_ext.training.execution import Execution


class RandomStream(IntEnum):
    """What random numbers are for: separate streams, none of which disturbs another."""

    GENERATOR_LEARNING = 1
    SAMPLES = 2
    NOISE_IMAGES = 3
    GENERATED_IMAGES = 4
    DIVERSITY = 6
    PROBES = 7
    ALTERNATING = 8
    BATCH_NORM_SAMPLES = 9
    LAYER_SENSITIVITY = 10
    HELD_BACK_IMAGES = 11
    CALIBRATION_DATA = 12


TIMED = ("synthesis", "calibration", "fine_tuning", "evaluation")  # what time is spent on


class Results:
    """What a run measured so far, which checkpoints hold.

    Args:
        folder: of the run, whose log belongs to the results.
        shape: of the logits: evaluation images, classes.
        start: of the run, as `time.perf_counter` tells it; now for None.
    """

    def __init__(
        self, folder: RunFolder, shape: tuple[int, int], start: float | None = None
    ) -> None:
        self.folder = folder
        self.shape = shape
        self.start = time.perf_counter() if start is None else start
        self.seconds = dict.fromkeys(TIMED, 0.0)
        self.logits: dict[str, Tensor] = {}  # by variant, on the evaluation images
        self.diversity: dict[str, Any] = {}  # of generated images, and of real ones
        self.initial_ranges: dict[str, Any] = {}  # by variant: the chosen ones, and divergences
        self.layer_bits: dict[str, Any] = {}  # by layer: its width, and what each would lose
        self.choice: dict[str, Any] = {}  # the variant that the run wrote, and divergences
        self.warnings: list[str] = []
        self.timing: tuple[str, float] | None = None  # what `timed` encloses, and since when

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of what it encloses to one of `TIMED`."""
        self.timing = name, time.perf_counter()
        yield
        self.seconds = self.seconds_so_far()
        self.timing = None

    def seconds_so_far(self) -> dict[str, float]:
        """Return the time of everything, that of an unfinished stage included."""
        if self.timing is None:
            return self.seconds
        name, start = self.timing
        # A clock that is set back makes no time negative.
        passed = max(time.perf_counter() - start, 0.0)
        return {**self.seconds, name: self.seconds[name] + passed}

    def total_seconds(self) -> float:
        """Return the time of the whole run so far, also before it was resumed."""
        return max(time.perf_counter() - self.start, 0.0)

    def warn(self, warnings: Iterable[str]) -> None:
        """Print new warnings, a line each, and keep them for `metrics.json`."""
        for warning in warnings:
            if warning not in self.warnings:
                print(f"warning: {one_line(warning)}", flush=True)
                self.warnings.append(warning)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {
            "seconds": self.seconds_so_far(),
            "total_seconds": self.total_seconds(),
            "logits": dict(self.logits),
            "diversity": self.diversity,
            "initial_ranges": self.initial_ranges,
            "layer_bits": self.layer_bits,
            "choice": self.choice,
            "warnings": list(self.warnings),
            "log": self.folder.read_text(LOG),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; the log loses what came after it.

        Raises:
            ValueError: if the state is of a run of other images or variants.
        """
        for key, logits in state["logits"].items():
            if key not in VARIANTS:
                raise ValueError(f"expected logits of {', '.join(VARIANTS)}, got some of {key}")
            if tuple(logits.shape) != self.shape or FLOAT.key not in state["logits"]:
                expected = list(self.shape)
                raise ValueError(f"expected logits {expected} of {key}, got {list(logits.shape)}")
        self.logits.update(state["logits"])
        self.seconds.update({name: float(state["seconds"][name]) for name in TIMED})
        self.start = time.perf_counter() - float(state["total_seconds"])
        self.diversity = json.loads(json.dumps(state["diversity"]))
        self.initial_ranges = json.loads(json.dumps(state["initial_ranges"]))
        # Checkpoints of earlier versions lack these.
        self.layer_bits = json.loads(json.dumps(state.get("layer_bits", {})))
        self.choice = json.loads(json.dumps(state.get("choice", {})))
        self.warnings[:] = map(str, state["warnings"])
        self.folder.write_text(LOG, state["log"])


@dataclass(frozen=True)
class Run:
    """What the stages of one run share; only `checkpoints` and `results` change."""

    config: RunConfig  # its batch sizes are what this process has of each batch
    device: torch.device
    execution: Execution
    classifier: Classifier  # on the device
    folder: RunFolder
    checkpoints: Checkpoints
    results: Results
    evaluation: Images | None = None
    reference: Images | None = None
    calibration: Images | None = None
    profiler: StepProfiler | None = None
    tensorboard: TensorboardLog | None = None
    facts: MadeWith = field(default_factory=dict)  # settings, and digests of weights and images
    # All images that were given, with the versions of their files at the start.
    versions: Sequence[tuple[Images, FileVersions]] = ()

    def made_with(self) -> MadeWith:
        """Return what the run is made with, widths that it has chosen among it."""
        known = self.results.layer_bits
        if not (known and self.config.quantization.chooses_layer_bits):
            return self.facts
        return {**self.facts, WIDTHS: digest_of_widths(widths_described(known))}

    def shared_rng(self, stream: int) -> torch.Generator:
        """Return a random number generator for a `RandomStream` or a number of one's own."""
        return torch.Generator(self.device).manual_seed(1000 * self.config.seed + stream)

    def rng(self, stream: int) -> torch.Generator:
        """Return a random number generator that differs from process to process."""
        seed = self.own_seed(1000 * self.config.seed + stream)
        return torch.Generator(self.device).manual_seed(seed)

    def own_seed(self, seed: int) -> int:
        """Turn a seed into that of this process; the only process keeps it."""
        return seed if distributed.world_size() == 1 else distributed.seed_for(seed)

    def separate_processes(self) -> None:
        """Let the noise in the generator, so far the same, differ from process to process."""
        if distributed.world_size() > 1:
            torch.manual_seed(distributed.seed_for(self.config.seed))

    def log(self, stage: str, values: Mapping[str, Any]) -> None:
        """Keep what one step of a stage measured."""
        self.folder.append_jsonl(LOG, {"stage": stage, **values})
        if self.tensorboard is not None:
            self.tensorboard.scalars(stage, values)

    def new_student(self) -> QuantizedClassifier:
        """Convert the classifier to the wanted scheme, on its own device.

        Where a budget decides about widths, they are chosen already.
        """
        config, known = self.config.quantization, self.results.layer_bits
        chosen = widths_described(known) if config.chooses_layer_bits else None
        student = student_of(config, self.classifier, chosen)
        return lay_out(student, self.execution.memory_format)

    def with_options(self, **changes: Any) -> "Run":
        """Return a run of the same classifier and images, nothing of which is done yet.

        Args:
            changes: options that have other values in it, such as `bits`.
        """
        return replace(
            self,
            config=self.config.changed(**changes),
            results=Results(self.folder, self.results.shape),
            checkpoints=unwritten_checkpoints(self.folder, self.config),
            facts={},
        )


def new_run(
    config: RunConfig,
    classifier: Classifier,
    folder: RunFolder,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
    start: float | None = None,
    evaluation: Images | None = None,
    **more: Any,
) -> Run:
    """Start a run of a classifier, which is moved to the device.

    From here on random numbers depend only on the seed.

    Args:
        config: of the run.
        classifier: float, on any device.
        folder: of the run.
        execution: chosen for the device.
        checkpoints: of the run; None for such as are written only where it stops.
        start: as for `Results`.
        evaluation: images that accuracy is measured on.
        more: reference images, profiler and TensorBoard's log, as `Run` has them.
    """
    device = torch.device(execution.device)
    lay_out(classifier.model.to(device), execution.memory_format)
    torch.manual_seed(config.seed)
    checkpoints = checkpoints or unwritten_checkpoints(folder, config)
    shape = len(evaluation or ()), classifier.num_classes
    results = Results(folder, shape, start)
    return Run(
        config, device, execution, classifier, folder, checkpoints, results, evaluation, **more
    )


def unwritten_checkpoints(folder: RunFolder, config: RunConfig) -> Checkpoints:
    """Return checkpoints that are written only where the run stops."""
    return Checkpoints(folder.of_checkpoints(), None, config.keep_checkpoints, {}, own=folder)
