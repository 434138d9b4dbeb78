"""A checkpoint as one safetensors file: tensors as such, everything else as JSON in its header.

A file's name holds its number and the beginning of its SHA-256, such as
`000012-5f70bf18a0860070.safetensors`. Bytes that do not belong to their name are not even parsed.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from zscgan_ext import distributed
from zscgan_ext.errors import InputError, first_line, one_line
from zscgan_ext.json_values import (
    MismatchError,
    anything,
    integer,
    list_of,
    mapping_of,
    record,
    text,
)
from zscgan_ext.regular_file import read_regular_file
from zscgan_ext.run_folder.files import CHECKPOINTS
from zscgan_ext.run_folder.whole_file import write_whole
from zscgan_ext.safetensors_content import tensors_and_metadata

State = dict[str, Any]  # nested: text keys; tensors, numbers, text, booleans, None, lists
NAME = re.compile(r"(\d{6,})-([0-9a-f]{16})\.safetensors", re.ASCII)
LARGEST = 1 << 40  # bytes of a checkpoint
TENSOR = "__tensor__"  # the key of the JSON object that stands in the place of a tensor
RNG = record({"default_rng": mapping_of(anything), "rngs": mapping_of(anything)})
LAYOUT = 2  # of what a checkpoint holds; others cannot be resumed
STATE = record(
    {
        "layout": integer(LAYOUT, LAYOUT),
        "facts": mapping_of(text()),
        "finished": list_of(text()),
        "steps": integer(0),
        "held": mapping_of(mapping_of(anything)),
        "rngs_of_all": list_of(RNG),
    }
)


class DamagedCheckpointError(ValueError):
    """A checkpoint that is truncated, was changed or cannot be read; the message is one line."""


def encode(state: Mapping[str, Any]) -> bytes:
    """Turn a state into the bytes of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(without_tensors(state, "", tensors))
    return safetensors.torch.save(tensors, {"state": text})


def without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a state, copied, into a dictionary; return the rest for JSON."""
    if isinstance(value, Tensor):
        copy = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        tensors[name] = copy
        return {TENSOR: name}
    if isinstance(value, Mapping):
        return {k: without_tensors(v, f"{name}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_tensors(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    return value


def decode(data: bytes) -> State:
    """Turn the bytes of a safetensors file back into a state, its tensors on the CPU."""
    tensors, metadata = tensors_and_metadata(data)
    state: State = with_tensors(json.loads(metadata["state"]), tensors)
    return state


def with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put tensors back to where `without_tensors` took them from."""
    if isinstance(value, dict):
        if set(value) == {TENSOR}:
            return tensors[value[TENSOR]]
        return {k: with_tensors(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [with_tensors(v, tensors) for v in value]
    return value


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first; none where there is no folder."""
    files = [file for file in folder.glob("*.safetensors") if NAME.fullmatch(file.name)]
    return sorted(files, key=lambda file: (number_of(file), file.name))


def number_of(file: Path) -> int:
    """Return the number in a checkpoint's name."""
    return int(file.name.partition("-")[0])


def write_checkpoint(
    folder: Path,
    number: int,
    state: Mapping[str, Any],
    write: Callable[[Path, bytes], object] | None = None,
) -> Path:
    """Write a checkpoint, which is there whole or not at all.

    Args:
        folder: for it.
        number: of the checkpoint.
        state: that it holds.
        write: writes the file; `write_whole` for None.

    Raises:
        InputError: if it cannot be written.
    """
    data = encode(state)
    file = folder / f"{number:06d}-{checksum(data)}.safetensors"
    (write or write_whole)(file, data)
    return file


def read_checkpoint(file: Path) -> State:
    """Read a checkpoint, without running anything that it holds.

    Raises:
        DamagedCheckpointError: if it cannot be read or its bytes are not those that were written.
    """
    try:
        data = read_regular_file(file, LARGEST)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DamagedCheckpointError(f"cannot be read ({reason})") from None
    match = NAME.fullmatch(file.name)
    if match is None or checksum(data) != match[2]:
        raise DamagedCheckpointError("is truncated or corrupt, its checksum does not match")
    try:
        return decode(data)
    except Exception as error:  # bytes that match their name, made by something else
        raise DamagedCheckpointError(f"is no checkpoint ({first_line(error)})") from None


def checksum(data: bytes) -> str:
    """Return the beginning of the bytes' SHA-256 as text."""
    return hashlib.sha256(data).hexdigest()[:16]


def newest_checkpoint(run: Path) -> State | None:
    """Read the newest whole checkpoint of a run; one line tells of each that is damaged.

    Returns:
        What it holds, or None for a run that was stopped before its first one.

    Raises:
        InputError: if there are checkpoints, and all are damaged; or if another version of the
            package wrote the newest whole one.
    """
    files = checkpoint_files(run / CHECKPOINTS)
    for file in reversed(files):
        try:
            content = read_checkpoint(file)
            require_layout(run, content)
            return state_of_a_run(content)
        except DamagedCheckpointError as error:
            what_now = "" if file == files[0] else "; the one before it is used"
            if distributed.rank() == 0:
                line = one_line(f"checkpoint: {file} {error}{what_now}")
                print(line, file=sys.stderr, flush=True)
    if files:
        raise InputError(f"resume: expected a whole checkpoint in {run}, all are damaged")
    return None


def require_layout(run: Path, content: State) -> None:
    """Require a checkpoint of this version of the package.

    Raises:
        InputError: if its contents are laid out otherwise.
    """
    layout = content.get("layout")
    if "facts" in content and not (isinstance(layout, int) and layout == LAYOUT):
        raise InputError(
            f"resume: another version of zscgan_ext wrote the checkpoints of {run}; resume with "
            "that one, or start a new run with another --output"
        )


def state_of_a_run(content: Any) -> State:
    """Return what a checkpoint holds, which has to be what `Checkpoints.write` has written.

    Raises:
        DamagedCheckpointError: if it is something else.
    """
    try:
        state: State = STATE(content)
    except MismatchError as error:
        raise DamagedCheckpointError(f"is no checkpoint of a run ({error})") from None
    if not state["rngs_of_all"]:
        raise DamagedCheckpointError("is no checkpoint of a run (rngs_of_all is empty)")
    return state
