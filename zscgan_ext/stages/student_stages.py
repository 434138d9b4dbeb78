"""The stages that quantize the classifier: convert, calibrate, fine-tune, evaluate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from zscgan_ext import processes
from zscgan_ext.images.datasets import Images
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.measures import predict
from zscgan_ext.quantization.calibration import calibrate, choose_initial_ranges, least
from zscgan_ext.quantization.fine_tuning import FineTuningStep, fine_tune
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.squant import round_weights
from zscgan_ext.stages.generator_stage import generator_goes_on
from zscgan_ext.stages.progress import Progress
from zscgan_ext.stages.results import LEARNING_ROWS
from zscgan_ext.stages.run import Run, new_student
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import GeneratorTraining, learning_batches

MOST_EVALUATED, EVALUATED_PIXELS = 500, 2**21  # images and their pixels in a batch, at most

# Gives batches of the size it is called with: images [B, C, H, W] and labels [B], forever.
BatchesOfSize = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def quantize(run: Run, batches: Iterator[tuple[Tensor, Tensor]], row: str) -> QuantizedClassifier:
    """Convert the classifier, round it, take its ranges from these images, and evaluate it."""
    student = calibrated_student(run, batches, row, row, "images")
    evaluate(run, student, row)
    run.checkpoints.release(f"{row} student")  # nothing goes on from it
    return student


def fine_tuned_student(
    run: Run, batches: BatchesOfSize, row: str, learning: ConditionalGenerator | None = None
) -> QuantizedClassifier:
    """Convert the classifier, calibrate and fine-tune it on these images, and evaluate it.

    Args:
        run: that the row belongs to.
        batches: which calibration and fine-tuning take in the sizes that are set for them.
        row: its name.
        learning: the generator of these images, if it goes on learning with the student.
    """
    student = starting_student(run, batches(run.settings.batch_size), row)
    feeding = [] if learning is None else [generator_goes_on(run, learning)]
    batches_of_fine_tuning = batches(run.settings.fine_tuning_batch_size)
    fine_tune_student(run, student, batches_of_fine_tuning, row, feeding)
    for training in feeding:
        training.teacher.remove_hooks()
    return student


def starting_student(
    run: Run, batches: Iterator[tuple[Tensor, Tensor]], row: str
) -> QuantizedClassifier:
    """Return the student that the fine-tuning of a row starts from."""
    return calibrated_student(run, batches, row, f"{row} start", run.settings.ranges)


def fine_tune_student(
    run: Run,
    student: QuantizedClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    row: str,
    feeding: Sequence[GeneratorTraining] = (),
) -> None:
    """Fine-tune a calibrated student on these images, and evaluate it."""
    if not run.checkpoints.is_finished(row):
        train_student(run, student, batches, row, feeding)
    evaluate(run, student, row)


def calibrated_student(
    run: Run, batches: Iterator[tuple[Tensor, Tensor]], row: str, stage: str, ranges: str
) -> QuantizedClassifier:
    """Convert the classifier, round it, and give its activations ranges.

    Args:
        run: that the stage belongs to.
        batches: of images and labels.
        row: that the stage is part of.
        stage: the stage's name.
        ranges: as the setting.
    """
    checkpoints, name = run.checkpoints, f"{stage} student"
    student = new_student(run.settings, run.classifier, run.execution)
    if checkpoints.is_finished(stage):
        checkpoints.hold(name, student)
        student.quantize_activations()
        return student
    with checkpoints.stage(stage):
        with checkpoints.interruptible(), run.timed("calibration"):
            if run.settings.rounding == "balanced":
                round_weights(student)
            give_ranges(run, student, batches, row, ranges)
        checkpoints.hold(name, student)
    return student


def give_ranges(
    run: Run,
    student: QuantizedClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    row: str,
    ranges: str,
) -> None:
    """Calibrate a student; where its logits choose the way to do so, tell which way it is."""
    classifier, settings = run.classifier.model, run.settings
    if ranges != "least_divergence":
        calibrate(student, batches, settings.calibration_batches, ranges, classifier)
        return
    divergences = choose_initial_ranges(student, classifier, batches, settings)
    chosen = least(divergences)
    run.first_ranges[row] = {"chosen": chosen, "divergence": divergences}
    shown = ", ".join(f"{name} {value:.3g}" for name, value in divergences.items())
    print(f"{LEARNING_ROWS[row]}: first ranges {chosen} (divergence: {shown})", flush=True)


def train_student(
    run: Run,
    student: QuantizedClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    row: str,
    feeding: Sequence[GeneratorTraining],
) -> None:
    """Fine-tune a calibrated student on these images, with a log on the way.

    Args:
        run: that the stage belongs to.
        student: calibrated.
        batches: of images and labels.
        row: the stage's name.
        feeding: trainings of the generator that take a step before each batch.
    """
    settings = run.settings
    for training in feeding:
        batches = learning_batches(training, batches)
    with (
        run.checkpoints.stage(row),
        run.timed("fine_tuning"),
        run.steps_of(row, settings.fine_tuning_steps, feeding) as around,
        Progress(LEARNING_ROWS[row], settings.fine_tuning_steps, settings.log_interval) as progress,
    ):

        def report(step: FineTuningStep) -> None:
            progress.update(step.step, {"loss": step.loss, "agreement": step.agreement})
            if progress.is_due(step.step):
                run.log(row, asdict(step))

        fine_tune(
            *(student, run.classifier.model, batches, settings, report, progress.wants),
            *(around.after_step, around.before_steps),
        )


def evaluate(run: Run, model: nn.Module, row: str) -> None:
    """Keep the model's logits on the evaluation images, if there are any."""
    stage = f"{row} evaluated"
    if run.evaluation is None or run.checkpoints.is_finished(stage):
        return
    with (
        run.checkpoints.stage(stage),
        run.checkpoints.interruptible(),
        run.timed("evaluation"),
    ):
        preprocessing = run.classifier.preprocessing
        images = run.evaluation
        if processes.count() > 1:
            images = images.subset(torch.tensor(processes.share(len(images)), dtype=torch.int64))
        batch_size = max(1, min(MOST_EVALUATED, EVALUATED_PIXELS // preprocessing.image_size**2))
        logits = predict(
            *(model, images, preprocessing, batch_size, run.device),
            run.execution.memory_format,
        )
        run.logits[row] = torch.cat(processes.of_all(logits))


def real_batches(
    run: Run, reference: Images, random: torch.Generator, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches of real training images on the device."""
    preprocessing = run.classifier.preprocessing
    for images, labels in reference.random_batches(batch_size, preprocessing, random):
        images = to_memory_format(images.to(run.device), run.execution.memory_format)
        yield images, labels.to(run.device)
