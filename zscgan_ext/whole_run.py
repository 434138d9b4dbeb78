"""A run from its configuration to its files, as the command `train` does it."""

import contextlib
import sys
from collections.abc import Sequence
from functools import partial

import torch

from zscgan_ext import distributed
from zscgan_ext.classifiers.trust import allowed_classifier, gives_option, is_of_a_library
from zscgan_ext.config.command_line import CONFIG, flag
from zscgan_ext.config.configs import OPTIONS, RunConfig
from zscgan_ext.config.values import parse_formats
from zscgan_ext.errors import first_line, is_out_of_memory, one_line
from zscgan_ext.export.exporter import export_copy, export_run, form_of, summary
from zscgan_ext.images.digest import changed_files_warnings
from zscgan_ext.ops.implementation import require_implementation
from zscgan_ext.program import exit_with_message
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.report import require_matplotlib
from zscgan_ext.run_folder.files import METRICS, PREDICTIONS
from zscgan_ext.run_folder.made_with import metadata_of
from zscgan_ext.stages.preparation import prepare
from zscgan_ext.stages.results import metrics, predictions, table
from zscgan_ext.stages.run import Run
from zscgan_ext.stages.sequence import (
    run_generator_stages,
    run_instant_stages,
    run_reference_stages,
)
from zscgan_ext.training.stop_signals import StoppedError


def export_student(run: Run) -> None:
    """Write the fine-tuned student in the formats to deploy, from the files of the run."""
    formats = parse_formats(run.config.export)
    if formats and run.config.stop_after is None:
        print(summary(export_run(run.folder.path, formats, run.config.classifier)))


def export_first(run: Run, student: QuantizedClassifier) -> None:
    """Write an instant student in the formats to deploy, and say so, before it is measured."""
    if distributed.rank() > 0:
        return
    formats, is_gpu = parse_formats(run.config.export), run.device.type == "cuda"
    # What comes later draws the same random numbers, whatever is exported.
    with torch.random.fork_rng([run.device] if is_gpu else []), run.checkpoints.interruptible():
        if formats:
            folder, form = run.folder.path, form_of(run.config)
            print(summary(export_copy(run.classifier, student, folder, formats, form)))
    place, seconds = run.folder.path, run.results.total_seconds()
    goes_on = ", and can be used while the run improves it" if run.config.learns_generator else ""
    text = f"the quantized classifier is in {place} after {seconds:.0f} s{goes_on}"
    print(one_line(text), flush=True)


def report(run: Run) -> None:
    """Write the page about a run that went to its end."""
    if run.config.report and run.config.stop_after is None:
        from zscgan_ext.report.page import write_report  # imports matplotlib

        print(one_line(f"report in {write_report(run.folder.path, run.config.classifier)}"))


def check_resumed(config: RunConfig, arguments: Sequence[str]) -> None:
    """Require that no folder decides which code runs.

    Raises:
        InputError: if only the resumed run's folder names a classifier that is of no library.
    """
    if config.resume is not None:
        given = config.classifier if gives_option(arguments, "--classifier") else None
        allowed_classifier(config.classifier, given, config.resume / CONFIG)


def settings_of_the_folder(config: RunConfig, arguments: Sequence[str]) -> set[str]:
    """Return the names of the settings that only the folder of a resumed run gives."""
    if config.resume is None:
        return set()
    return {name for name in OPTIONS if not gives_option(arguments, flag(name))}


def resume_options(run: Run) -> str:
    """Return the options that resume a run."""
    name = run.config.classifier
    classifier = "" if is_of_a_library(name) else f" --classifier {name}"
    return f"--resume {run.folder.path}{classifier}"


def run_to_end(run: Run) -> None:
    """Run all stages; let the first process write what they gave."""
    if run.config.stop_after is None:
        run_instant_stages(run, partial(export_first, run))
    if run.config.learns_generator:
        run_generator_stages(run)
    run_reference_stages(run)
    if run.profiler is not None:
        run.profiler.write(run.folder)
    for images, before in run.versions:
        run.results.warn(changed_files_warnings(before, images))
    measured = metrics(run)
    run.folder.write_json(METRICS, measured)
    if run.results.logits:
        run.folder.save_tensors(PREDICTIONS, predictions(run), metadata_of(run.made_with()))
        print(table(measured))
    if distributed.rank() == 0:
        with run.checkpoints.interruptible():
            run.folder.require_same_config()
            if run.config.learns_generator:
                export_student(run)
            report(run)
    print(one_line(f"{measured['seconds']['total']:.0f} s, results in {run.folder.path}"))


def run_configuration(config: RunConfig, arguments: Sequence[str]) -> int:
    """Run a configuration in one process; return the exit code.

    Args:
        config: of the run.
        arguments: the command line that it was read from.

    Raises:
        InputError: if anything does not fit.
    """
    require_implementation()
    if config.report:
        require_matplotlib()
    try:
        check_resumed(config, arguments)
        run = prepare(config, settings_of_the_folder(config, arguments))
        with contextlib.closing(run.folder), run.checkpoints.signals:
            run_to_end(run)
    except StoppedError as stopped:
        if distributed.rank() == 0:
            print(one_line(f"{stopped}; {resume_options(run)} resumes it"), file=sys.stderr)
        return stopped.exit_code
    except RuntimeError as error:
        if distributed.world_size() == 1 or is_out_of_memory(error):
            raise
        lost = f"error: lost another process ({first_line(error)})"
        return exit_with_message(f"{lost}; --resume starts from the last checkpoint", 1)
    distributed.leave()
    return 0
