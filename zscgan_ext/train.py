"""The main program: a classifier goes in, its quantized form and what that cost come out.

`python -m zscgan_ext.train --help` lists the settings. The stages follow one another: learn the
generator, calibrate ranges, fine-tune, evaluate; each leaves its results in the run folder.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zscgan_ext.batch_norm_matching import FrozenTeacher
from zscgan_ext.classifiers import Classifier
from zscgan_ext.command_line import parse_settings, settings_to_yaml
from zscgan_ext.config import Settings, parse_bits, parse_formats, resolve_device
from zscgan_ext.datasets import Images, check_labels, open_images
from zscgan_ext.environment import environment
from zscgan_ext.errors import InputError
from zscgan_ext.evaluation import agreement, predict, top1
from zscgan_ext.execution import Execution, choose_execution
from zscgan_ext.export.exporter import export_run, summary
from zscgan_ext.export.runtime import require_onnx
from zscgan_ext.finished_run import load_float_classifier
from zscgan_ext.generator import ConditionalGenerator
from zscgan_ext.memory_format import to_memory_format
from zscgan_ext.profiling import StepProfiler
from zscgan_ext.progress import Progress
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import QuantizedClassifier, convert, folded
from zscgan_ext.quantization.fine_tuning import FineTuningStep, fine_tune
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.run_folder import RunFolder
from zscgan_ext.synthesis import (
    SynthesisStep,
    mixed_batches,
    noise_batches,
    synthetic_batches,
    train_generator,
)
from zscgan_ext.training import nothing
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

EVALUATION_BATCH = 500  # images
SAMPLES_PER_CLASS = 10
SAMPLED_CLASSES = 20  # at most, in a grid
SAMPLED_FRACTIONS = (0.1, 0.3, 1.0)  # of the synthesis steps, beside the first

ROWS = {
    "float": "float",
    "noise_calibrated": "quantized, ranges from random noise",
    "generated_calibrated": "quantized, ranges from generated images",
    "fine_tuned": "fine-tuned on generated images",
    "real_calibrated": "quantized, ranges from real images",
    "real_fine_tuned": "fine-tuned on real images",
}


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
    seconds: dict[str, float]
    logits: dict[str, Tensor]  # [N, num_classes] of each row, on the evaluation images

    def random(self, stage: int) -> torch.Generator:
        """Return the random numbers of a stage, which no other stage disturbs."""
        return torch.Generator(self.device).manual_seed(1000 * self.settings.seed + stage)

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
    classifier.model.to(device).to(memory_format=execution.memory_format)
    stages = ("synthesis", "calibration", "fine_tuning", "evaluation")
    seconds = dict.fromkeys(stages, 0.0)
    profiler = StepProfiler(device) if settings.profile else None
    return Run(
        *(settings, device, execution, classifier, evaluation, reference, folder, profiler),
        seconds,
        {},
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


# ---- stages -------------------------------------------------------------------------------------


def learn_generator(run: Run) -> ConditionalGenerator:
    """Learn the generator, with samples and a log on the way."""
    settings, classifier = run.settings, run.classifier
    generator = ConditionalGenerator(
        classifier.num_classes, settings.latent_dim, classifier.preprocessing
    )
    generator.to(run.device).to(memory_format=run.execution.memory_format)
    teacher = FrozenTeacher(classifier.model, settings.distance)
    steps = settings.synthesis_steps
    sampled = {1, *(max(1, round(fraction * steps)) for fraction in SAMPLED_FRACTIONS)}
    with (
        run.timed("synthesis"),
        run.profiled("synthesis", steps) as after_step,
        Progress("synthesis", steps, settings.log_interval) as progress,
    ):

        def report(step: SynthesisStep) -> None:
            progress.update(
                step.step, {"loss": step.loss, "teacher accuracy": step.teacher_accuracy}
            )
            if progress.is_due(step.step):
                run.folder.append_jsonl("metrics.jsonl", {"stage": "synthesis", **asdict(step)})
            if step.step in sampled:
                save_samples(run, generator, step.step)

        def is_due(step: int) -> bool:
            return progress.wants(step) or step in sampled

        train_generator(generator, teacher, settings, run.random(1), report, is_due, after_step)
    teacher.remove_hooks()
    run.folder.save_tensors("generator.safetensors", generator.state_dict())
    return generator


@torch.no_grad()
def save_samples(run: Run, generator: ConditionalGenerator, step: int) -> None:
    """Write a grid of generated images, one row per class; the same latent vectors each time."""
    classes = min(run.classifier.num_classes, SAMPLED_CLASSES)
    labels = torch.arange(classes, device=run.device).repeat_interleave(SAMPLES_PER_CLASS)
    latent, _ = generator.random_inputs(len(labels), run.random(2))
    was_training = generator.training
    generator.eval()
    images = generator(latent, labels)
    generator.train(was_training)
    pixels = run.classifier.preprocessing.denormalize(images)
    grid = pixels.reshape(classes, SAMPLES_PER_CLASS, *pixels.shape[1:])
    names = run.classifier.class_names[:classes]
    run.folder.save_image_grid(f"samples/step-{step:06d}.png", grid, names)


def quantize(run: Run, batches: Iterator[tuple[Tensor, Tensor]], row: str) -> QuantizedClassifier:
    """Convert the classifier, take its ranges from these images, and evaluate it."""
    with run.timed("calibration"):
        student = new_student(run.settings, run.classifier, run.execution)
        calibrate(student, batches, run.settings.calibration_batches)
    evaluate(run, student, row)
    return student


def fine_tune_student(
    run: Run, student: QuantizedClassifier, batches: Iterator[tuple[Tensor, Tensor]], row: str
) -> None:
    """Fine-tune a calibrated student on these images, and evaluate it."""
    settings = run.settings
    with (
        run.timed("fine_tuning"),
        run.profiled(row, settings.fine_tuning_steps) as after_step,
        Progress(ROWS[row], settings.fine_tuning_steps, settings.log_interval) as progress,
    ):

        def report(step: FineTuningStep) -> None:
            progress.update(step.step, {"loss": step.loss, "agreement": step.agreement})
            if progress.is_due(step.step):
                run.folder.append_jsonl("metrics.jsonl", {"stage": row, **asdict(step)})

        mixed = mixed_batches(batches, run.random(5), run.execution.memory_format)
        teacher = folded(run.classifier.model).to(memory_format=run.execution.memory_format)
        fine_tune(student, teacher, mixed, settings, report, progress.wants, after_step)
    evaluate(run, student, row)


def evaluate(run: Run, model: nn.Module, row: str) -> None:
    """Keep the model's logits on the evaluation images, if there are any."""
    if run.evaluation is None:
        return
    with run.timed("evaluation"):
        preprocessing = run.classifier.preprocessing
        run.logits[row] = predict(
            *(model, run.evaluation, preprocessing, EVALUATION_BATCH, run.device),
            run.execution.memory_format,
        )


def real_batches(run: Run, reference: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches of real training images on the device."""
    random = torch.Generator().manual_seed(run.settings.seed)
    preprocessing = run.classifier.preprocessing
    for images, labels in reference.random_batches(run.settings.batch_size, preprocessing, random):
        images = to_memory_format(images.to(run.device), run.execution.memory_format)
        yield images, labels.to(run.device)


# ---- results ------------------------------------------------------------------------------------


def metrics(run: Run, total_seconds: float) -> dict[str, Any]:
    """Collect what `metrics.json` holds; None where nothing was measured."""
    settings = run.settings
    weight_bits, activation_bits = parse_bits(settings.bits)
    measured_top1: dict[str, float | None] = dict.fromkeys(ROWS)
    measured_agreement: dict[str, float | None] = dict.fromkeys(ROWS)
    if run.evaluation is not None:
        for row, logits in run.logits.items():
            measured_top1[row] = top1(logits, run.evaluation.labels)
            measured_agreement[row] = agreement(logits, run.logits["float"])
    return {
        "classifier": settings.classifier,
        "bits": {"weights": weight_bits, "activations": activation_bits},
        "scheme": settings.scheme,
        "seed": settings.seed,
        "device": str(run.device),
        "execution": run.execution.facts(),
        "top1": measured_top1,
        "agreement": measured_agreement,
        "seconds": {**run.seconds, "total": total_seconds},
        "peak_memory_bytes": peak_memory(run.device),
        **environment(),
    }


def peak_memory(device: torch.device) -> int:
    """Return the most memory the process (or, on a GPU, torch) held at a time, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(results: dict[str, Any]) -> str:
    """Lay out the measured rows as a table."""
    lines = [f"{'':42} {'top-1 %':>8} {'agreement with float %':>23}"]
    for row, name in ROWS.items():
        if results["top1"][row] is not None:
            accuracy, equal = results["top1"][row], results["agreement"][row]
            lines.append(f"{name:42} {accuracy:8.2f} {equal:23.2f}")
    return "\n".join(lines)


def run_stages(run: Run) -> None:
    """Run all stages, or those up to `stop_after`."""
    settings = run.settings
    generator = learn_generator(run)
    if settings.stop_after == "synthesis":
        return
    evaluate(run, run.classifier.model, "float")
    shape = run.classifier.preprocessing.shape
    quantize(run, noise_batches(settings.batch_size, shape, run.random(3)), "noise_calibrated")
    batches = synthetic_batches(
        generator, settings.batch_size, run.random(4), run.execution.memory_format
    )
    student = quantize(run, batches, "generated_calibrated")
    fine_tune_student(run, student, batches, "fine_tuned")
    run.folder.save_tensors("quantized.safetensors", student.state_dict())
    if run.reference is not None:
        batches = real_batches(run, run.reference)
        student = quantize(run, batches, "real_calibrated")
        fine_tune_student(run, student, batches, "real_fine_tuned")


def export_student(run: Run) -> None:
    """Write the fine-tuned student in the formats to deploy, from the files of the run."""
    formats = parse_formats(run.settings.export)
    if formats and run.settings.stop_after is None:
        print(summary(export_run(run.folder.path, formats)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    start = time.perf_counter()
    try:
        run = prepare(parse_settings(arguments))
        run_stages(run)
        if run.profiler is not None:
            run.profiler.write(run.folder)
        results = metrics(run, time.perf_counter() - start)
        run.folder.write_json("metrics.json", results)
        if run.logits:
            print(table(results))
        export_student(run)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was written so far is kept", file=sys.stderr)
        return 130
    print(f"{results['seconds']['total']:.0f} s, results in {run.folder.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
