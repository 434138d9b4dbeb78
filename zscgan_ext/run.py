"""A run: what its stages share, checked before anything is written."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.classifiers import Classifier
from zscgan_ext.command_line import settings_to_yaml
from zscgan_ext.config import Settings, parse_bits, parse_formats, resolve_device
from zscgan_ext.datasets import Images, check_labels, open_images
from zscgan_ext.execution import Execution, choose_execution
from zscgan_ext.export.runtime import require_onnx
from zscgan_ext.finished_run import load_float_classifier
from zscgan_ext.profiling import StepProfiler
from zscgan_ext.quantization.conversion import QuantizedClassifier, convert
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.run_folder import RunFolder
from zscgan_ext.tensorboard_log import TensorboardLog, require_tensorboard
from zscgan_ext.training import nothing
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

STAGES = ("synthesis", "calibration", "fine_tuning", "evaluation")


@dataclass
class Run:
    """What the stages of one run share."""

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

    def random(self, stage: int) -> torch.Generator:
        """Return the random numbers of a stage, which no other stage disturbs."""
        return torch.Generator(self.device).manual_seed(1000 * self.settings.seed + stage)

    def log(self, stage: str, values: Mapping[str, Any]) -> None:
        """Keep what one step of a stage measured."""
        self.folder.append_jsonl("metrics.jsonl", {"stage": stage, **values})
        if self.tensorboard is not None:
            self.tensorboard.scalars(stage, values)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of what it encloses to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def profiled(self, stage: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
        """Profile steps of a training if that is wanted; give what to call after each step."""
        if self.profiler is None:
            return nullcontext(nothing)
        return self.profiler.stage(stage, steps)


def prepare(settings: Settings) -> Run:
    """Check all that was given, then create the run folder.

    Raises:
        InputError: if anything does not fit; nothing was written then.
    """
    torch.manual_seed(settings.seed)
    if "onnx" in parse_formats(settings.export):
        require_onnx()
    if settings.tensorboard:
        require_tensorboard()
    classifier = load_float_classifier(settings)
    evaluation = open_data(settings.evaluation_data or bundled_data(settings), "test", classifier)
    reference = open_data(settings.reference_data, "train", classifier)
    device = resolve_device(settings.device)
    execution = choose_execution(settings, device)
    new_student(settings, classifier, execution)
    folder = RunFolder(settings.output_folder(), settings.overwrite)
    folder.write_text("config.yaml", settings_to_yaml(settings))
    execution.apply()
    print(f"execution: {execution}", flush=True)
    run = new_run(settings, classifier, folder)
    run.evaluation, run.reference = evaluation, reference
    run.profiler = StepProfiler(device) if settings.profile else None
    run.tensorboard = TensorboardLog(folder.path) if settings.tensorboard else None
    return run


def new_run(settings: Settings, classifier: Classifier, folder: RunFolder) -> Run:
    """Start a run of a classifier, which is moved to the device, without any real images.

    From here on random numbers depend on the seed alone.
    """
    device = resolve_device(settings.device)
    execution = choose_execution(settings, device)
    classifier.model.to(device).to(memory_format=execution.memory_format)
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
    )


def bundled_data(settings: Settings) -> str | None:
    """Return the name of the test images that come with a bundled classifier."""
    return "fashion-mnist" if settings.classifier in BUNDLED_CLASSIFIERS else None


def open_data(name: str | None, split: Any, classifier: Classifier) -> Images | None:
    """Open labelled images that fit the classifier, if any were named."""
    if name is None:
        return None
    images = open_images(name, split, classifier.preprocessing)
    check_labels(images, classifier.num_classes)
    return images


def new_student(
    settings: Settings, classifier: Classifier, execution: Execution
) -> QuantizedClassifier:
    """Convert the classifier to the wanted scheme, on its own device."""
    scheme = Scheme(settings.scheme, *parse_bits(settings.bits))
    student = convert(classifier.model, scheme, classifier.preprocessing.shape)
    return student.to(memory_format=execution.memory_format)
