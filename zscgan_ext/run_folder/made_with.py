"""What a run was made with: its files say it themselves, as its settings can be edited.

The student, the generator and the predictions of a run hold it in their metadata, and
`metrics.json` a digest of it. What reads a finished run compares it with `config.yaml` and with the
classifier that is loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zscgan_ext.config.command_line import CONFIG
from zscgan_ext.config.configs import OPTIONS, RunConfig
from zscgan_ext.config.values import LayerBits
from zscgan_ext.errors import InputError, first_line, some_of
from zscgan_ext.json_values import anything, mapping_of, parse_json, text
from zscgan_ext.run_folder.files import LAYER_BITS
from zscgan_ext.safetensors_content import read_metadata

MadeWith = Mapping[str, str]  # settings by name, as text, and digests

METADATA = "zscgan_ext"  # the key of the JSON in a file's metadata
MADE_WITH = "made_with"  # the key in it, and in `metrics.json`
WEIGHTS = "weights of the classifier"
IMAGES_OF = "images of {}"  # by the setting that names them
WIDTHS = f"widths of {LAYER_BITS}"
LONGEST, MOST = 1 << 14, 1 << 10  # characters of a value; values
CHECK = mapping_of(text(longest=LONGEST), text(longest=LONGEST), MOST)
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


def check_weights(name: str, model: nn.Module, made_with: MadeWith) -> None:
    """Require that the weights of a classifier are those that a run was made with.

    Args:
        name: of the classifier.
        model: that was loaded.
        made_with: what the run's student says.

    Raises:
        InputError: if they are others.
    """
    if is_other(made_with, WEIGHTS, digest_of_weights(model)):
        raise InputError(
            f"{WEIGHTS}: those of {name} are others than the run was made with; give those again, "
            "or run it again with these"
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
