"""What a run was made with: its files say it themselves, as its settings can be edited.

The student, the generator and the predictions of a run hold it in their metadata, and
`metrics.json` a digest of it. What reads a finished run compares it with `config.yaml` and with the
classifier that is loaded.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zscgan_ext.classifiers.trials import random_images
from zscgan_ext.config.command_line import CONFIG
from zscgan_ext.config.configs import OPTIONS, RunConfig
from zscgan_ext.config.values import LayerBits
from zscgan_ext.errors import InputError, first_line, some_of
from zscgan_ext.json_values import anything, mapping_of, parse_json, text
from zscgan_ext.run_folder.files import EXPORTED, LAYER_BITS, STUDENT
from zscgan_ext.safetensors_content import read_metadata, read_safetensors_file

MadeWith = Mapping[str, str]  # settings by name, as text, and digests

METADATA = "zscgan_ext"  # the key of the JSON in a file's metadata
MADE_WITH = "made_with"  # the key in it, and in `metrics.json`
WEIGHTS = "weights of the classifier"
# Weights do not tell everything: the code around them may have changed, or what it keeps elsewhere.
ANSWERS = "answers of the classifier"
IMAGES_OF = "images of {}"  # by the setting that names them
WIDTHS = f"widths of {LAYER_BITS}"
TRIED_IMAGES, KEPT_ANSWERS = 2, 64  # random images; logits of all of them
SAME_ANSWERS = 0.05  # of their range: machines round differently, and may compute in bfloat16
LONGEST, MOST = 1 << 14, 1 << 10  # characters of a value; values
CHECK = mapping_of(text(longest=LONGEST), text(longest=LONGEST), MOST)
STUDENT_DIGEST, DIGESTS = "student", "digests"  # in `export.json`: of the student, of its files
# Settings that change nothing of what is learned and measured.
WITHOUT_EFFECT = {
    *("resume", "checkpoint_every", "keep_checkpoints", "output", "overwrite", "export"),
    *("log_interval", "profile", "report", "tensorboard", "keep_freed_memory"),
}
# Settings that a run may change when it is resumed.
CHANGEABLE = {
    *("device", "precision", "memory_format", "cuda_graphs", "compile"),
    *WITHOUT_EFFECT,
}
# Settings of files to deploy, which may be chosen anew for each of them.
OF_EXPORT = {"input", "resize_input"}
# Settings that name a place, where the weights that it holds are compared.
PLACES = {"weights"}


def settings_of(config: RunConfig) -> dict[str, str]:
    """Return the settings that a run keeps when it is resumed, as text."""
    return {name: str(value) for name, value in config.options().items() if name not in CHANGEABLE}


def digest_of_weights(model: nn.Module) -> str:
    """Return what tells the weights of a classifier from others."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return what tells named tensors from others, in whatever order they stand in a file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def digest_of_bytes(data: bytes) -> str:
    """Return what tells a file from others."""
    return hashlib.sha256(data).hexdigest()[:16]


@torch.no_grad()
def answers_of(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Return some logits of a classifier on the CPU for random images, always the same, as text."""
    images = random_images(TRIED_IMAGES, image_shape, torch.zeros(()))
    logits = model(images)[:, : KEPT_ANSWERS // TRIED_IMAGES]
    return " ".join(f"{value:.6g}" for value in logits.flatten().tolist())


def are_same_answers(found: str, expected: str) -> bool:
    """Return True if answers are of one function, as far as rounding lets them."""
    try:
        ours, theirs = ([float(value) for value in text.split()] for text in (found, expected))
    except ValueError:
        return False
    if len(ours) != len(theirs) or not all(map(math.isfinite, ours + theirs)):
        return found == expected
    allowed = SAME_ANSWERS * (max(theirs) - min(theirs))
    return all(abs(a - b) <= allowed for a, b in zip(ours, theirs, strict=True))


def digest_of_widths(widths: Mapping[str, LayerBits]) -> str:
    """Return what tells the widths of layers from others."""
    return digest({name: str(bits) for name, bits in widths.items()})


def digest(made_with: MadeWith) -> str:
    """Return what tells one run from runs that were made with something else."""
    return hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:16]


def metadata_of(made_with: MadeWith) -> dict[str, str]:
    """Return the metadata of a file of a run."""
    return {METADATA: json.dumps({MADE_WITH: made_with})}


def read_made_with(file: Path) -> MadeWith | None:
    """Return what a file says that its run was made with; None if it does not say it.

    Raises:
        InputError: if it cannot be read, or holds something else in that place.
    """
    try:
        held = read_metadata(file).get(METADATA)
        found = {} if held is None else parse_json(held, mapping_of(anything))
        return None if MADE_WITH not in found else dict(CHECK(found[MADE_WITH]))
    except Exception as error:  # a damaged file raises nearly anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file}: its metadata cannot be read ({reason})") from None


def check_settings(folder: Path, config: RunConfig, made_with: MadeWith) -> None:
    """Require that the settings of a finished run are those that it was made with.

    Args:
        folder: of the run.
        config: that it holds.
        made_with: what its student says.

    Raises:
        InputError: naming those that differ.
    """
    differing = []
    for name, value in settings_of(config).items():
        # A setting that came with a later version had the value that is its default.
        before = made_with.get(name, str(OPTIONS[name].field.default))
        if value != before and name not in OF_EXPORT | PLACES:
            differing.append(f"{name} is {value}, and was {before}")
    if differing:
        raise InputError(
            f"config: {folder / CONFIG} was changed after its run, which was made with other "
            f"settings ({some_of(differing)}); put them back, or run it again with these"
        )


def is_other(made_with: MadeWith, name: str, found: str) -> bool:
    """Return True if a run was made with something else of this name, as far as it says."""
    return made_with.get(name, found) != found


def check_classifier(
    name: str, model: nn.Module, image_shape: tuple[int, int, int], made_with: MadeWith
) -> None:
    """Require that a classifier is the one that a run was made with.

    Args:
        name: of the classifier.
        model: that was loaded.
        image_shape: (C, H, W) of its input.
        made_with: what the run's student says.

    Raises:
        InputError: if it has other weights, or computes something else.
    """
    if is_other(made_with, WEIGHTS, digest_of_weights(model)):
        raise InputError(
            f"{WEIGHTS}: those of {name} are others than the run was made with; give those again, "
            "or run it again with these"
        )
    answers = answers_of(model, image_shape)
    if not are_same_answers(answers, made_with.get(ANSWERS, answers)):
        raise InputError(
            f"{ANSWERS}: {name} has the weights that the run was made with, but computes something "
            "else; put its code back, and what it keeps beside its weights, or run it again"
        )


def check_widths(folder: Path, widths: Mapping[str, LayerBits], made_with: MadeWith) -> None:
    """Require that the widths of layers are those that a run has chosen.

    Raises:
        InputError: if they are others.
    """
    if is_other(made_with, WIDTHS, digest_of_widths(widths)):
        raise InputError(
            f"{folder / LAYER_BITS}: holds other widths than the run has chosen; put those back, "
            "or run it again"
        )


def check_same_run(file: Path, held: Any, expected: Any) -> None:
    """Require that a file is of the run that the folder's student is of.

    Args:
        file: for messages.
        held: what it says of its run.
        expected: the same of the student; None for one that does not say it.

    Raises:
        InputError: if it is of another.
    """
    if expected is not None and held != expected:
        raise InputError(
            f"{file}: is of another run than the quantized classifier beside it; put that of this "
            "run back, or run it again"
        )


def check_file(file: Path, expected: MadeWith | None) -> None:
    """Require that a file of tensors is of the run that the folder's student is of.

    Args:
        file: that says in its metadata what its run was made with.
        expected: as `check_same_run`.

    Raises:
        InputError: if it is of another, or its metadata cannot be read.
    """
    check_same_run(file, read_made_with(file), expected)


def digest_of_student(folder: Path) -> str:
    """Return what tells the student of a run from others.

    Raises:
        InputError: if its file cannot be read.
    """
    file = folder / STUDENT
    try:
        tensors, _ = read_safetensors_file(file)
    except Exception as error:  # a damaged file raises nearly anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file}: cannot be read ({reason})") from None
    return digest_of_tensors(tensors)


def check_exported(file: Path, student: str, export: Mapping[str, Any] | None) -> None:
    """Require that an exported file in the folder of a run is of the student beside it.

    Args:
        file: under the name that export gives it; of others nothing is known.
        student: the digest of the student.
        export: what `export.json` holds, None without one. Earlier versions kept no digests.

    Raises:
        InputError: if it is of another one.
    """
    formats = {name: format_name for format_name, name in EXPORTED.items()}
    if file.name not in formats or export is None or DIGESTS not in export:
        return
    expected = export[DIGESTS].get(formats[file.name])
    if export.get(STUDENT_DIGEST) != student or digest_of_bytes(file.read_bytes()) != expected:
        raise InputError(
            f"{file}: is of another student than {STUDENT} beside it; export the run again"
        )
