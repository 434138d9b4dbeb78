"""The precision of a run on a CPU, where that is left open: the faster one of its first steps."""

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from zscgan_ext import distributed
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.config.configs import WITH_GENERATOR, RunConfig
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import generator_of
from zscgan_ext.synthesis.generator_training import GeneratorTrainer
from zscgan_ext.training.execution import choose_execution

CPU_INFORMATION = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}
MEASURED = ("float32", "bfloat16")
MEASURED_STEPS = 4  # in each precision, the first of which does not count
FEWEST_STEPS = 50  # of a run for which measuring is worth its time
LARGEST_SHARE = 0.8  # of the time in float32 for which bfloat16 is taken


class PrecisionChoice(NamedTuple):
    """A precision, and why it was chosen; empty where nothing was to choose."""

    name: str
    reason: str


def multiplies_bfloat16() -> bool:
    """Return True if the processor has instructions that multiply bfloat16; Linux tells."""
    try:
        lines = CPU_INFORMATION.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not BFLOAT16_FLAGS.isdisjoint(flags.split())


def choose_precision(
    config: RunConfig, classifier: Classifier, device: torch.device, earlier: object
) -> PrecisionChoice:
    """Choose the precision of a run on a CPU that leaves it open.

    Args:
        config: of the run, with the batch sizes of this process.
        classifier: of the run.
        device: of the run.
        earlier: precision of the checkpoint that is resumed, if it knows one; None without one.
    """
    given = config.execution.precision
    if given != "auto" or device.type != "cpu":
        return PrecisionChoice(given, "")
    if isinstance(earlier, str) and earlier in MEASURED:
        return PrecisionChoice(earlier, "as before")
    if config.resume is not None:
        return PrecisionChoice("float32", "")
    if not multiplies_bfloat16():
        return PrecisionChoice("float32", "the processor does not multiply bfloat16")
    steps = config.generator.steps if config.preset in WITH_GENERATOR else 0
    if steps < FEWEST_STEPS:
        return PrecisionChoice("float32", f"fewer than {FEWEST_STEPS} steps to measure on")
    wide, narrow = step_seconds(config, classifier, device)
    is_slower = narrow > LARGEST_SHARE * wide
    (is_slower,) = distributed.agree(is_slower)
    milliseconds = f"{narrow * 1e3:.0f} ms in bfloat16, {wide * 1e3:.0f} ms in float32"
    return PrecisionChoice("float32" if is_slower else "bfloat16", f"step: {milliseconds}")


def step_seconds(
    config: RunConfig, classifier: Classifier, device: torch.device
) -> tuple[float, float]:
    """Return the least processor time of a generator learning step in float32 and in bfloat16.

    Both take turns. torch's default random numbers are as they were afterwards.
    """
    trainers = {}
    with torch.random.fork_rng([]):
        for precision in MEASURED:
            trainers[precision] = new_trainer(config, classifier, device, precision)
        shortest = dict.fromkeys(trainers, float("inf"))
        for step in range(MEASURED_STEPS):
            for precision, trainer in trainers.items():
                # Unlike the time that passes, it is little changed by other programs.
                start = time.process_time()
                trainer.step(trainer.sample())
                if step > 0:
                    shortest[precision] = min(shortest[precision], time.process_time() - start)
    for trainer in trainers.values():
        trainer.teacher.remove_hooks()
    return shortest["float32"], shortest["bfloat16"]


def new_trainer(
    config: RunConfig, classifier: Classifier, device: torch.device, precision: str
) -> GeneratorTrainer:
    """Return a trainer that learns nothing which is kept."""
    execution = replace(choose_execution(config.execution, device), precision_name=precision)
    execution.apply()
    torch.manual_seed(config.seed)
    model = lay_out(classifier.model, execution.memory_format)
    generator = lay_out(generator_of(config.generator, classifier), execution.memory_format)
    rng = torch.Generator(device).manual_seed(config.seed)
    teacher = FrozenTeacher(model, config.generator.distance)
    return GeneratorTrainer(generator, teacher, config.generator, execution, rng)
