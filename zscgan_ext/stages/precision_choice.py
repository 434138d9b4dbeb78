"""The precision of training on a CPU, where that is left open: whichever is faster."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch

from zscgan_ext import distributed
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.trials import random_images
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.images.memory_format import lay_out, to_memory_format
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import student_of
from zscgan_ext.quantization.fine_tuning import StudentTrainer
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import generator_of
from zscgan_ext.synthesis.generator_training import GeneratorTrainer
from zscgan_ext.training.execution import Execution
from zscgan_ext.training.trainer import Trainer

CPU_INFORMATION = Path("/proc/cpuinfo")
# On x86, and on ARM.
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
GENERATOR, FINE_TUNING = "generator", "fine-tuning"  # trainings that choose for themselves
MEASURED = ("float32", "bfloat16")
MEASURED_STEPS = 4  # in each precision, the first of which does not count
FEWEST_STEPS = 50  # of a training for which measuring is worth its time
LARGEST_SHARE = 0.8  # of the time in float32 for which bfloat16 is taken

NewTrainer = Callable[[Execution], Trainer]  # of one that learns nothing which is kept


class Training(NamedTuple):
    """A training whose precision is chosen."""

    steps: int
    new_trainer: NewTrainer


class Choice(NamedTuple):
    """A precision, and why."""

    precision: str
    reason: str


def multiplies_bfloat16() -> bool:
    """Return True if the processor has instructions that multiply bfloat16; Linux tells."""
    try:
        lines = CPU_INFORMATION.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not BFLOAT16_FLAGS.isdisjoint(flags.split())


def is_open(precision: str, execution: Execution) -> bool:
    """Return True if the precision that a configuration gives leaves something to choose."""
    return precision == "auto" and execution.device == "cpu"


def with_chosen_precision(execution: Execution, trainings: Mapping[str, Training]) -> Execution:
    """Choose the precision of trainings on a CPU, each for itself.

    Args:
        execution: in float32.
        trainings: by their names, `GENERATOR` and `FINE_TUNING`; may lack either.
    """
    (is_without,) = distributed.agree(not multiplies_bfloat16())
    if is_without:
        return replace(execution, precision_reason="the processor does not multiply bfloat16")
    with torch.random.fork_rng([]):
        choices = {name: choice(name, each, execution) for name, each in trainings.items()}
    return replace(
        execution,
        precision_name=choices[GENERATOR].precision if GENERATOR in choices else "float32",
        fine_tuning_precision_name=(
            choices[FINE_TUNING].precision if FINE_TUNING in choices else "float32"
        ),
        precision_reason="; ".join(each.reason for each in choices.values()),
    )


def choice(name: str, training: Training, execution: Execution) -> Choice:
    """Choose the precision of one training, by steps that nothing remains of."""
    if training.steps < FEWEST_STEPS:
        return Choice("float32", f"fewer than {FEWEST_STEPS} {name} steps")
    seconds = step_seconds(training.new_trainer, execution)
    wide, narrow = (seconds[precision] for precision in MEASURED)
    (is_slower,) = distributed.agree(narrow > LARGEST_SHARE * wide)
    if narrow == float("inf"):
        return Choice("float32", f"{name} step: fails in bfloat16")
    milliseconds = f"{narrow * 1e3:.0f} ms in bfloat16, {wide * 1e3:.0f} ms in float32"
    return Choice("float32" if is_slower else "bfloat16", f"{name} step: {milliseconds}")


def step_seconds(new_trainer: NewTrainer, execution: Execution) -> dict[str, float]:
    """Return the least time of a step in each precision, which take turns.

    It is infinite for bfloat16 where a step fails in it, or gives numbers that are not finite.
    """
    execution.apply()
    trainers = {name: new_trainer(in_precision(execution, name)) for name in MEASURED}
    seconds: dict[str, list[float]] = {name: [] for name in MEASURED}
    try:
        for _ in range(MEASURED_STEPS):
            for name, trainer in trainers.items():
                seconds[name].append(timed_step(trainer))
    except (RuntimeError, TypeError, ValueError):
        if len(seconds["float32"]) == len(seconds["bfloat16"]):  # it is float32 that fails
            raise
        seconds["bfloat16"] = [float("inf")]
    finally:
        for trainer in trainers.values():
            if isinstance(trainer, GeneratorTrainer):
                trainer.teacher.remove_hooks()
    if float("inf") in seconds["bfloat16"]:
        return {"float32": min(seconds["float32"]), "bfloat16": float("inf")}
    return {name: min(each[1:]) for name, each in seconds.items()}


def in_precision(execution: Execution, name: str) -> Execution:
    """Return the same in another precision."""
    return replace(execution, precision_name=name, fine_tuning_precision_name=name)


def timed_step(trainer: Trainer) -> float:
    """Take a step; return how long it took, infinity if it gave a loss that is not finite."""
    # Not processor time, in which threads that wait for others count as if they worked.
    start = time.perf_counter()
    values = trainer.step(trainer.sample())
    seconds = time.perf_counter() - start
    return seconds if bool(values.isfinite().all()) else float("inf")


# ---- trainings ----------------------------------------------------------------------------------


def generator_training(config: RunConfig, classifier: Classifier) -> Training:
    """Return the training of a generator, as this process takes part in it.

    Args:
        config: of the run, with the batch sizes of this process.
        classifier: of the run, on the CPU.
    """

    def new_trainer(execution: Execution) -> Trainer:
        torch.manual_seed(config.seed)
        model = lay_out(classifier.model, execution.memory_format)
        generator = lay_out(generator_of(config.generator, classifier), execution.memory_format)
        rng = torch.Generator().manual_seed(config.seed)
        teacher = FrozenTeacher(model, config.generator.distance)
        return GeneratorTrainer(generator, teacher, config.generator, execution, rng)

    return Training(config.generator.steps if config.learns_generator else 0, new_trainer)


def fine_tuning(
    config: RunConfig, classifier: Classifier, student: QuantizedClassifier | None = None
) -> Training:
    """Return the training of a student, as this process takes part in it.

    Args:
        config: of the run, with the batch sizes of this process.
        classifier: of the run, on the CPU.
        student: calibrated, which is copied; None for one that is quantized as the run's will be.
    """
    shape = classifier.preprocessing.shape
    images = random_images(config.fine_tuning.batch_size, shape, torch.zeros(()))
    labels = torch.zeros(len(images), dtype=torch.int64)
    batch = images, classifier.head.only(labels, classifier.num_classes)

    def new_trainer(execution: Execution) -> Trainer:
        nonlocal student
        model = lay_out(classifier.model, execution.memory_format)
        if student is None:
            student = student_of(config.quantization, classifier)
            calibrate(student, iter([batch]), 1)
        copied = lay_out(copy.deepcopy(student), execution.memory_format)
        laid_out = to_memory_format(images, execution.memory_format), batch[1]
        batches, head = repeat(laid_out), classifier.head
        return StudentTrainer(copied, model, batches, config.fine_tuning, execution, head)

    return Training(config.fine_tuning.steps, new_trainer)
