"""The stages of a run in their order: learn the generator, calibrate, fine-tune, evaluate."""

from functools import partial

import torch

from zscgan_ext.images.datasets import near_chance_warnings
from zscgan_ext.measures import top1
from zscgan_ext.quantization.dead_quantizers import dead_quantizers
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.files import GENERATOR, STUDENT
from zscgan_ext.stages.generator_stage import (
    generated_batches,
    learn_generator,
    measure_diversity,
    probe_batches,
)
from zscgan_ext.stages.run import RandomStream, Run
from zscgan_ext.stages.student_stages import (
    BatchesOfSize,
    evaluate,
    fine_tuned_student,
    quantize,
    real_batches,
)
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import noise_batches


def run_stages(run: Run) -> None:
    """Run all stages, or those up to `stop_after`, that are not finished."""
    settings = run.settings
    generator = learn_generator(run)
    measure_diversity(run, generator)
    if settings.stop_after == "synthesis":
        return
    evaluate(run, run.classifier.model, "float")
    warn_of_chance(run)
    shape = run.classifier.preprocessing.shape
    noise = noise_batches(settings.batch_size, shape, run.random(RandomStream.NOISE_IMAGES))
    quantize(run, noise, "noise_calibrated")
    random = run.checkpoints.hold_random("image random", run.random(RandomStream.GENERATED_IMAGES))
    batches: BatchesOfSize = partial(generated_batches, run, generator, random)
    quantize(run, batches(settings.batch_size), "generated_calibrated")
    learning = generator if settings.training == "alternating" else None
    student = fine_tuned_student(run, batches, "fine_tuned", learning)
    save_student(run, student, generator)
    if run.reference is not None:
        random = torch.Generator().manual_seed(run.own_seed(settings.seed))
        run.checkpoints.hold_random("real image random", random)
        batches = partial(real_batches, run, run.reference, random)
        quantize(run, batches(settings.batch_size), "real_calibrated")
        fine_tuned_student(run, batches, "real_fine_tuned")


def warn_of_chance(run: Run) -> None:
    """Warn of evaluation images on which the float classifier seems to guess."""
    if run.evaluation is not None:
        name, labels = run.settings.evaluation_data, run.evaluation.labels
        percent = top1(run.logits["float"], labels)
        classes = run.classifier.num_classes
        run.warn(near_chance_warnings(name, len(labels), percent, classes))


def save_student(run: Run, student: QuantizedClassifier, generator: ConditionalGenerator) -> None:
    """Look at and write the fine-tuned student, which checkpoints need not hold any longer."""
    if not run.checkpoints.is_finished("saving"):
        with run.checkpoints.stage("saving"):
            images, _ = next(probe_batches(run, generator))
            run.warn(dead_quantizers(student, images))
            run.folder.save_tensors(STUDENT, student.state_dict())
            run.folder.save_tensors(GENERATOR, generator.state_dict())
            run.checkpoints.release("fine_tuned start student")
