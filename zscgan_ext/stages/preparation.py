"""Preparing a run: all that was given is checked before anything is written."""

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zscgan_ext import distributed
from zscgan_ext.classifiers.heads import MULTI_LABEL
from zscgan_ext.classifiers.labelled_images import open_labelled_for
from zscgan_ext.classifiers.loading import Classifier, classifier_of
from zscgan_ext.classifiers.trust import largest_feature_map
from zscgan_ext.config.command_line import CONFIG, config_to_yaml, flag, stored_config
from zscgan_ext.config.configs import OPTIONS, RunConfig
from zscgan_ext.config.values import parse_formats, parse_interval
from zscgan_ext.environment import fewer_bits_warnings
from zscgan_ext.errors import InputError, one_line
from zscgan_ext.export.exporter import check_exports
from zscgan_ext.export.onnx.runtime import require_packages
from zscgan_ext.images.datasets import (
    Images,
    few_labels_warnings,
    holds_idx_files,
    open_images,
    open_unlabelled,
)
from zscgan_ext.images.digest import FileVersions, digest_of_images, versions_of_files
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.process_environment import restarts
from zscgan_ext.quantization.conversion import student_of
from zscgan_ext.quantization.layer_widths import budget_of
from zscgan_ext.run_folder.checkpoint_file import newest_checkpoint
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.run_folder.files import GENERATOR as GENERATOR_FILE
from zscgan_ext.run_folder.files import LOG, METRICS, STUDENT, RunFolder, only_writer
from zscgan_ext.run_folder.made_with import (
    ANSWERS,
    CHANGEABLE,
    IMAGES_OF,
    WEIGHTS,
    answers_of,
    are_same_answers,
    digest_of_weights,
    read_made_with,
    settings_of,
)
from zscgan_ext.run_folder.own_files import LIST
from zscgan_ext.run_folder.profiling import StepProfiler
from zscgan_ext.run_folder.tensorboard_log import TensorboardLog, require_tensorboard
from zscgan_ext.stages.precision_choice import (
    FINE_TUNING,
    GENERATOR,
    MEASURED,
    fine_tuning,
    generator_training,
    is_open,
    with_chosen_precision,
)
from zscgan_ext.stages.run import Run, new_run
from zscgan_ext.training.execution import Execution, choose_execution
from zscgan_ext.zoo import bundled_images, open_bundled

BATCH_SIZES = ("batch_size", "fine_tuning_batch_size")
# What the folder of a resumed run may ask for on its own word.
MOST_IN_A_BATCH = 1 << 29  # numbers of a feature map
MOST_IMAGES = 1 << 13  # in a batch
MOST_FEATURES = 1 << 15  # of the latent vector; classes
# What a resumed run takes again where it is left open.
PRECISION, FINE_TUNING_PRECISION = "precision of generator learning", "precision of fine-tuning"
PRECISION_REASON = "why this precision"


def prepare(config: RunConfig, of_folder: Collection[str] = ()) -> Run:
    """Check all that was given, then create the run folder, whose user has to close it.

    Args:
        config: of the run.
        of_folder: the settings that only the folder of a resumed run gives, which may be of others.

    Raises:
        InputError: if anything does not fit; nothing was written then.
    """
    start = time.perf_counter()
    device = config.execution.resolved_device()
    distributed.join(device)
    if restarts() and is_unfinished(config.output_folder()):
        config = replace(config, resume=config.output_folder())
    shared = share_of_batches(config)
    with resumed_alone(config.resume):
        loaded = None if config.resume is None else newest_checkpoint(config.resume)
        given = check_given(config, device, of_folder, None if loaded is None else loaded["facts"])
        images = images_of(given)
        versions = {name: versions_of_files(each) for name, each in images.items()}
        facts = facts_of(config, device, given.classifier) | digests_of(images, versions)
        if loaded is not None:
            facts = resumed_facts(facts, loaded["facts"], "the checkpoint to resume")
        elif config.resume is not None:
            facts = resumed_facts(facts, facts_of_run(config.resume), "the run to resume")
        check_alike(facts, given.evaluation, given.reference, loaded)
        writes, resumes = distributed.rank() == 0, config.resume is not None
        folder = RunFolder(config.output_folder(), config.overwrite, resumes, writes)
    try:
        folder.write_config(config_to_yaml(replace(config, resume=None)))
        given.execution.apply()
        print(f"execution: {given.execution}", flush=True)
        every, keep = parse_interval(config.checkpoint_every), config.keep_checkpoints
        stored = facts | precisions(given.execution)
        checkpoints = Checkpoints(folder.of_checkpoints(), every, keep, stored, loaded, folder)
        logs = config.tensorboard and writes
        run = new_run(
            shared,
            given.classifier,
            folder,
            given.execution,
            checkpoints,
            start,
            given.evaluation,
            reference=given.reference,
            calibration=given.calibration,
            profiler=StepProfiler(device) if config.profile else None,
            tensorboard=TensorboardLog(folder) if logs else None,
            facts=facts,
            versions=[(each, versions[name]) for name, each in images.items() if each is not None],
        )
        resume_results(run, given)
    except BaseException:
        folder.close()
        raise
    return run


def is_unfinished(folder: Path) -> bool:
    """Return True if a folder holds a run that did not come to its results.

    Processes that torchrun started again go on with such a run. A finished one is another, which
    was there before them and is only replaced where that was asked for.
    """
    return (folder / CONFIG).exists() and not (folder / METRICS).exists()


def resume_results(run: Run, given: "Given") -> None:
    """Put the results of a run back to where it resumes from, and warn of its images."""
    if run.config.resume is not None:
        run.folder.write_text(LOG, "")
        print(f"resume: {one_line(run.checkpoints.position())}", flush=True)
    run.checkpoints.hold("results", run.results, gives_copies=True)
    classes = run.classifier.num_classes
    run.results.warn(fewer_bits_warnings())
    run.results.warn(average_warnings(run.config))
    run.results.warn(few_labels_warnings(given.evaluation_name, given.evaluation, classes))
    run.results.warn(few_labels_warnings(run.config.reference_data, given.reference, classes))


def average_warnings(config: RunConfig) -> list[str]:
    """Return a line about an average that nothing asks for, if one was given."""
    field, quantization = OPTIONS["average_weight_bits"].field, config.quantization
    average = quantization.average_weight_bits
    if quantization.chooses_layer_bits or average == field.default:
        return []
    return [f"average_weight_bits: {average:g} has no effect without --bits auto"]


@contextmanager
def resumed_alone(folder: Path | None) -> Iterator[None]:
    """Keep other processes from writing into the folder of a run, if it has a list of its files."""
    if folder is None or distributed.rank() > 0 or not (folder / LIST).exists():
        yield
        return
    with only_writer(folder):
        yield


@dataclass(frozen=True)
class Given:
    """What a configuration names, opened and checked."""

    classifier: Classifier
    evaluation_name: str | None
    evaluation: Images | None
    reference: Images | None
    calibration: Images | None
    execution: Execution


def check_given(
    config: RunConfig,
    device: torch.device,
    of_folder: Collection[str] = (),
    earlier: Mapping[str, Any] | None = None,
) -> Given:
    """Open and check all that a configuration names, and choose how it is executed.

    Args:
        config: that names it.
        device: of the run.
        of_folder: as `prepare` takes it.
        earlier: facts of the checkpoint that is resumed, None without one.

    Raises:
        InputError: if anything does not fit.
    """
    formats = parse_formats(config.export)
    require_packages(formats)
    if config.tensorboard:
        require_tensorboard()
    check_generator(config, of_folder)
    stored = None if config.resume is None else config.resume / CONFIG
    classifier = classifier_of(config, stored if "image_size" in of_folder else None)
    check_batches(config, classifier, of_folder)
    evaluation_name, evaluation = evaluation_images(config, classifier)
    reference = open_data(config.reference_data, "train", classifier)
    calibration = calibration_images(config, classifier)
    execution = choose_execution(config.execution, device)
    student = lay_out(student_of(config.quantization, classifier), execution.memory_format)
    if config.quantization.chooses_layer_bits:
        budget_of(config.quantization, student)
    if config.stop_after is None:
        check_exports(classifier, student, formats)
    if is_open(config.execution.precision, execution):
        if earlier is not None:
            execution = with_earlier_precision(execution, earlier)
        else:
            execution = measured_execution(config, classifier, execution)
    return Given(classifier, evaluation_name, evaluation, reference, calibration, execution)


def measured_execution(
    config: RunConfig, classifier: Classifier, execution: Execution
) -> Execution:
    """Choose the precision of what a run trains by its first steps."""
    shared = share_of_batches(config)
    trainings = {
        GENERATOR: generator_training(shared, classifier),
        FINE_TUNING: fine_tuning(shared, classifier),
    }
    return with_chosen_precision(execution, trainings)


def precisions(execution: Execution) -> dict[str, str]:
    """Return the facts that a resumed run takes its precision from."""
    return {
        PRECISION: execution.precision_name,
        FINE_TUNING_PRECISION: execution.fine_tuning_precision_name,
        PRECISION_REASON: execution.precision_reason,
    }


def with_earlier_precision(execution: Execution, facts: Mapping[str, Any]) -> Execution:
    """Return an execution in the precision of a checkpoint; float32 where it knows none."""
    names = [facts.get(name) for name in (PRECISION, FINE_TUNING_PRECISION)]
    precision, of_student = (name if name in MEASURED else "float32" for name in names)
    return replace(
        execution,
        precision_name=precision,
        fine_tuning_precision_name=of_student,
        precision_reason=one_line(str(facts.get(PRECISION_REASON, "as before"))),
    )


def check_generator(config: RunConfig, of_folder: Collection[str]) -> None:
    """Require a generator that a folder may ask for.

    Raises:
        InputError: naming the setting, which can be given again.
    """
    for name in ("latent_dim", "num_classes"):
        size = OPTIONS[name].value_in(config) or 0
        if name in of_folder and size > MOST_FEATURES:
            raise too_much(config, name, size, f"more than {MOST_FEATURES:,}")


def check_batches(config: RunConfig, classifier: Classifier, of_folder: Collection[str]) -> None:
    """Require batches that a folder may ask for.

    Raises:
        InputError: naming the setting, which can be given again.
    """
    sizes = {name: OPTIONS[name].value_in(config) for name in BATCH_SIZES if name in of_folder}
    if not sizes:
        return
    numbers = largest_feature_map(classifier.model, classifier.preprocessing.shape)
    for name, size in sizes.items():
        if size > MOST_IMAGES:
            raise too_much(config, name, size, f"more than {MOST_IMAGES:,}")
        if size * numbers > MOST_IN_A_BATCH:
            found = f"feature maps of {size * numbers:,} numbers"
            raise too_much(config, name, size, found)


def too_much(config: RunConfig, name: str, size: int, found: str) -> InputError:
    """Return the error for a setting of a folder that asks for much memory."""
    return InputError(
        f"{name}: {config.resume}/{CONFIG} asks for {size:,}, {found}; if that is meant, give "
        f"{flag(name)} {size} again"
    )


def share_of_batches(config: RunConfig) -> RunConfig:
    """Return a configuration with the batch sizes that this process has of each batch.

    Raises:
        InputError: if the processes cannot have equal shares.
    """
    shares = {}
    for name in BATCH_SIZES:
        size = OPTIONS[name].value_in(config)
        if size % distributed.world_size():
            raise InputError(
                f"{name}: expected a multiple of the {distributed.world_size()} processes, which "
                f"share each batch, got {size}"
            )
        shares[name] = size // distributed.world_size()
    return config.changed(**shares)


def evaluation_images(
    config: RunConfig, classifier: Classifier
) -> tuple[str | None, Images | None]:
    """Open the images that accuracy is measured on, if there are any.

    Raises:
        InputError: if they do not fit.
    """
    name = config.evaluation_data
    if name is not None:
        return name, open_data(name, "test", classifier)
    if classifier.head is MULTI_LABEL:  # those that are bundled have one label each
        return None, None
    facts = config.classifier, classifier.preprocessing, classifier.num_classes
    return bundled_images(config.classifier), open_bundled(*facts)


def calibration_images(config: RunConfig, classifier: Classifier) -> Images | None:
    """Open the images that a user has to calibrate and fine-tune with, if there are any.

    Raises:
        InputError: if they do not fit.
    """
    name = config.calibration_data
    if name is None:
        return None
    if name == "fashion-mnist" or holds_idx_files(Path(name)):
        return open_images(name, "train", classifier.preprocessing)
    return open_unlabelled(Path(name), classifier.preprocessing)


def open_data(name: str | None, split: Any, classifier: Classifier) -> Images | None:
    """Open labelled images that fit the classifier, if any were named."""
    if name is None:
        return None
    facts = classifier.preprocessing, classifier.class_names
    return open_labelled_for(classifier.head, name, split, *facts)


def facts_of(config: RunConfig, device: torch.device, classifier: Classifier) -> dict[str, Any]:
    """Return what a run must have in common with the checkpoint that it resumes from."""
    return {
        **settings_of(config),
        "device": device.type,
        WEIGHTS: digest_of_weights(classifier.model),
        ANSWERS: answers_of(classifier.model, classifier.preprocessing.shape),
    }


def images_of(given: Given) -> dict[str, Images | None]:
    """Return the images that were given, by the settings that name them."""
    return {
        "evaluation_data": given.evaluation,
        "reference_data": given.reference,
        "calibration_data": given.calibration,
    }


def digests_of(
    images: Mapping[str, Images | None], versions: Mapping[str, FileVersions]
) -> dict[str, str]:
    """Return what tells the images that were given from others, by the settings that name them.

    A run that goes on with others would compare what it measured on different images.
    """
    return {
        IMAGES_OF.format(name): digest_of_images(each, versions[name])
        for name, each in images.items()
    }


def check_alike(
    facts: Mapping[str, Any], evaluation: Images | None, reference: Images | None, loaded: Any
) -> None:
    """Require that all processes compute the same, before anything is written.

    Raises:
        InputError: naming what differs, such as the weights.
    """
    own = {
        **facts,
        "evaluation_data": digest_of_labels(evaluation),
        "reference_data": digest_of_labels(reference),
        "checkpoint to resume": "none" if loaded is None else str(loaded["steps"]),
        "version of torch": torch.__version__,
    }
    of_all = distributed.all_gather(own)
    for place, other in enumerate(of_all):
        for name, value in of_all[0].items():
            if not is_same_fact(name, other.get(name), value):
                raise InputError(
                    f"{name}: process 0 has {value}, process {place} has {other.get(name)}; all "
                    "processes need the same files and versions"
                )


def is_same_fact(name: str, found: Any, expected: Any) -> bool:
    """Return True if a fact is the same, but for rounding where it has numbers."""
    if name == ANSWERS:
        return are_same_answers(str(found), str(expected))
    return bool(found == expected)


def facts_of_run(folder: Path) -> Mapping[str, str]:
    """Return what is known of a run without a checkpoint, whose results would be replaced.

    Raises:
        InputError: if it is finished, and its files do not say what they were made with.
    """
    for name in (STUDENT, GENERATOR_FILE):
        made_with = read_made_with(folder / name) if (folder / name).exists() else None
        if made_with is not None:
            return made_with
    if (folder / METRICS).exists():
        raise InputError(
            f"resume: {folder} is finished, has no checkpoint, and does not say what it was made "
            "with, as runs of earlier versions; give --config with its config.yaml and another "
            "--output to run it again"
        )
    return settings_of(stored_config(folder))


def digest_of_labels(images: Images | None) -> str:
    """Return what tells labelled images from others: how many there are, of what labels."""
    if images is None:
        return "none"
    digest = hashlib.sha256(images.labels.contiguous().numpy().tobytes()).hexdigest()[:16]
    return f"{len(images)} images, labels {digest}"


def resumed_facts(
    facts: Mapping[str, Any], before: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Return the facts of a run that is resumed, whose files say the same before and after.

    Args:
        facts: of the run.
        before: those that the run to resume was started with.
        source: where these are from.

    Raises:
        InputError: naming the first that differs.
    """
    check_facts(facts, before, source)
    if WEIGHTS not in before:  # of no file yet
        return dict(facts)
    if ANSWERS in before:
        return {**facts, ANSWERS: before[ANSWERS]}
    return {name: value for name, value in facts.items() if name != ANSWERS}


def check_facts(facts: Mapping[str, Any], before: Mapping[str, Any], source: str) -> None:
    """Require that a run is the one that it resumes; arguments and errors as of `resumed_facts`."""
    for name, value in facts.items():
        if name in OPTIONS and name not in CHANGEABLE and name not in before:
            raise InputError(
                f"resume: another version of zscgan_ext, without the setting {name}, wrote "
                f"{source}; resume with that one, or start a new run with another --output"
            )
        expected = before.get(name, value)
        if is_same_fact(name, value, expected):
            continue
        if name in (WEIGHTS, ANSWERS):
            raise InputError(
                f"{name}: expected those that {source} was written with; give those again, or "
                "start a new run with another --output"
            )
        raise InputError(
            f"{name}: expected {expected}, as {source} has, got {value}; put that back, in "
            f"{CONFIG} or the arguments, or start a new run with another --output"
        )
