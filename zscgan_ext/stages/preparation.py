"""Preparing a run: all that was given is checked before anything is written."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zscgan_ext import processes
from zscgan_ext.classifiers.loading import Classifier, classifier_of
from zscgan_ext.errors import InputError, one_line
from zscgan_ext.export.exporter import check_exports
from zscgan_ext.export.onnx.runtime import require_packages
from zscgan_ext.images.datasets import Images, few_labels_warnings, open_labelled
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.run_folder.files import LOG, RunFolder, own_files
from zscgan_ext.run_folder.newest_checkpoint import newest_checkpoint
from zscgan_ext.run_folder.own_files import LIST
from zscgan_ext.run_folder.profiling import StepProfiler
from zscgan_ext.run_folder.tensorboard_log import TensorboardLog, require_tensorboard
from zscgan_ext.settings.command_line import CONFIG, settings_to_yaml
from zscgan_ext.settings.config import Settings
from zscgan_ext.settings.values import parse_formats, parse_interval, resolve_device
from zscgan_ext.stages.run import Run, new_run, new_student
from zscgan_ext.training.execution import choose_execution
from zscgan_ext.zoo import bundled_images, open_bundled

BATCH_SIZES = ("batch_size", "fine_tuning_batch_size")
WEIGHTS = "weights of the classifier"
NamedImages = tuple[str | None, Images | None]
# Settings that change nothing of what is learned and measured.
WITHOUT_EFFECT = {
    *("resume", "checkpoint_every", "keep_checkpoints", "output", "overwrite", "export"),
    *("log_interval", "profile", "report", "tensorboard", "keep_freed_memory"),
}
# Settings that a run may change when it goes on from a checkpoint.
CHANGEABLE = {
    *("device", "precision", "memory_format", "cuda_graphs", "compile"),
    *WITHOUT_EFFECT,
}


def prepare(settings: Settings) -> Run:
    """Check all that was given, then create the run folder, whose user has to close it.

    Raises:
        InputError: if anything does not fit; nothing was written then.
    """
    start = time.perf_counter()
    device = resolve_device(settings.device)
    processes.join(device)
    shares = shares_of_batches(settings)
    if processes.restarts() and (settings.output_folder() / CONFIG).exists():
        settings = replace(settings, resume=settings.output_folder())
    with alone_in(settings.resume):
        folder, checkpoints, classifier, data = checked(settings, device)
    try:
        # From here on batch sizes are what this process has of each batch.
        run = new_run(replace(settings, **shares), classifier, folder)
        run.start, run.checkpoints = start, checkpoints
        complete(run, data)
    except BaseException:
        folder.close()
        raise
    return run


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Keep other processes from writing into the folder of a run, if it has a list of its files."""
    if folder is None or processes.rank() > 0 or not (folder / LIST).exists():
        yield
        return
    own = own_files(folder)
    try:
        yield
    finally:
        own.close()


def checked(
    settings: Settings, device: torch.device
) -> tuple[RunFolder, Checkpoints, Classifier, list[NamedImages]]:
    """Check all that was given; return the run folder, the checkpoints, the classifier, images.

    Raises:
        InputError: if anything does not fit; nothing was written then.
    """
    loaded = None if settings.resume is None else newest_checkpoint(settings.resume)
    require_packages(parse_formats(settings.export))
    if settings.tensorboard:
        require_tensorboard()
    classifier = classifier_of(settings)
    data = [
        evaluation_images(settings, classifier),
        (settings.reference_data, open_data(settings.reference_data, "train", classifier)),
    ]
    execution = choose_execution(settings, device)
    student = new_student(settings, classifier, execution)
    if settings.stop_after is None:
        check_exports(classifier, student, parse_formats(settings.export))
    facts = facts_of(settings, device, classifier.model)
    if loaded is not None:
        check_facts(facts, loaded["facts"])
    writes, resumes = processes.rank() == 0, settings.resume is not None
    folder = RunFolder(settings.output_folder(), settings.overwrite, resumes, writes)
    try:
        folder.write_config(settings_to_yaml(replace(settings, resume=None)))
        execution.apply()
        print(f"execution: {execution}", flush=True)
        every = parse_interval(settings.checkpoint_every)
        place, keep = folder.of_checkpoints(), settings.keep_checkpoints
        checkpoints = Checkpoints(place, every, keep, facts, loaded, folder)
    except BaseException:
        folder.close()
        raise
    return folder, checkpoints, classifier, data


def complete(run: Run, data: Sequence[NamedImages]) -> None:
    """Give a run its images and logs, and put it back into the state that it goes on from."""
    settings = run.settings
    run.evaluation, run.reference = (images for _, images in data)
    run.profiler = StepProfiler(run.device) if settings.profile else None
    logs = settings.tensorboard and processes.rank() == 0
    run.tensorboard = TensorboardLog(run.folder) if logs else None
    if settings.resume is not None:
        run.folder.write_text(LOG, "")
        print(f"resume: {one_line(run.checkpoints.position())}", flush=True)
    run.checkpoints.hold("measured", run, gives_copies=True)
    for name, images in data:
        run.warn(few_labels_warnings(name, images, run.classifier.num_classes))


def shares_of_batches(settings: Settings) -> dict[str, Any]:
    """Return by setting how many images of each batch this process has.

    Raises:
        InputError: if the processes cannot have equal shares.
    """
    sizes = {name: getattr(settings, name) for name in BATCH_SIZES}
    for name, size in sizes.items():
        if size % processes.count():
            raise InputError(
                f"{name}: {size}, needed is a multiple of the {processes.count()} processes, "
                "which share each batch"
            )
    return {name: size // processes.count() for name, size in sizes.items()}


def evaluation_images(settings: Settings, classifier: Classifier) -> NamedImages:
    """Open the images that accuracy is measured on, if there are any.

    Raises:
        InputError: if they do not fit.
    """
    name = settings.evaluation_data
    if name is not None:
        return name, open_data(name, "test", classifier)
    facts = settings.classifier, classifier.preprocessing, classifier.num_classes
    return bundled_images(settings.classifier), open_bundled(*facts)


def open_data(name: str | None, split: Any, classifier: Classifier) -> Images | None:
    """Open labelled images that fit the classifier, if any were named."""
    if name is None:
        return None
    return open_labelled(name, split, classifier.preprocessing, classifier.num_classes)


def facts_of(settings: Settings, device: torch.device, model: nn.Module) -> dict[str, Any]:
    """Return what a run must have in common with the checkpoint that it goes on from."""
    texts = {name: str(value) for name, value in vars(settings).items() if name not in CHANGEABLE}
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return {**texts, "device": device.type, WEIGHTS: digest.hexdigest()[:16]}


def check_facts(facts: Mapping[str, Any], of_checkpoint: Mapping[str, Any]) -> None:
    """Require that a run fits the checkpoint it goes on from.

    Raises:
        InputError: naming the first thing that does not.
    """
    for name, value in facts.items():
        needed = of_checkpoint.get(name, value)
        if value == needed:
            continue
        if name == WEIGHTS:
            raise InputError(
                f"{name}: others than those that the checkpoint to resume was written with; give "
                f"those again, or start a new run with another --output"
            )
        raise InputError(
            f"{name}: {value}, but the checkpoint to resume has {needed}; put that back, in "
            f"{CONFIG} or the arguments, or start a new run with another --output"
        )
