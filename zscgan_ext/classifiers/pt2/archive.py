"""The archive of a `torch.export` program, checked and written anew before torch reads it.

Torch's own reader unpickles custom objects, example inputs and tensors of certain kinds, loads
compiled libraries, and looks up by name what the program calls. So it is given an archive that is
made here: of JSON that was parsed and checked (`program_json.py`), and of the bytes of plain
tensors. Nothing of a file gets past that, whatever else it holds.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zscgan_ext.classifiers.pt2.program_json import checked_program, path, stored_meta
from zscgan_ext.classifiers.weights import check_allocations, check_tensors, stored
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.json_values import (
    MismatchError,
    boolean,
    mapping_of,
    one_of,
    parse_json,
    record,
    text,
)
from zscgan_ext.regular_file import read_regular_file

LARGEST_ARCHIVE = 1 << 36  # bytes
MOST_MEMBERS = 1 << 17
# An archive of torch 2.8 and later: members under a folder, of tensors as bytes and of JSON.
MODEL = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
WEIGHTS_LIST = f"{WEIGHTS}model_weights_config.json"
CONSTANTS_LIST = f"{CONSTANTS}model_constants_config.json"
PICKLED_WEIGHTS, PICKLED_CONSTANTS = f"{WEIGHTS}model.pt", f"{CONSTANTS}model.pt"
EXAMPLE_INPUTS = "data/sample_inputs/model.pt"
VERSIONS = {
    "archive_format": re.compile(rb"pt2"),
    "archive_version": re.compile(rb"\d{1,4}"),
    "byteorder": re.compile(rb"little"),
    ".data/version": re.compile(rb"\d{1,4}\n?"),
    "version": re.compile(rb"\d{1,4}\n?"),
}
UNREAD = (EXAMPLE_INPUTS, ".data/serialization_id", ".format_version", ".storage_alignment")
# An archive of torch up to 2.7: a state dict and constants, each as torch.save writes it.
FLAT_MODEL = "serialized_exported_program.json"
FLAT_STATE, FLAT_CONSTANTS = "serialized_state_dict.pt", "serialized_constants.pt"
FLAT_EXAMPLES = "serialized_example_inputs.pt"
FLAT_VERSION = re.compile(rb"\d{1,4}\.\d{1,4}")
BYTES_OF_DTYPE = {  # by the number that the JSON has for a dtype
    **dict.fromkeys((1, 2, 12, 29, 30, 31, 32, 33), 1),
    **dict.fromkeys((3, 6, 13, 28), 2),
    **dict.fromkeys((4, 7, 34), 4),
    **dict.fromkeys((5, 8, 35), 8),
}


def checked_archive(file: Path) -> io.BytesIO:
    """Return an archive of what a `.pt2` file holds, which torch may read.

    Raises:
        InputError: if the file cannot be read, or holds anything but a program of plain tensors.
    """
    try:
        data = read_regular_file(file, LARGEST_ARCHIVE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"classifier: {file} cannot be read ({reason})") from None
    try:
        return rewritten(members_of(data))
    except (MismatchError, InputError) as error:
        raise InputError(
            f"classifier: {file} cannot be read as a torch.export program ({error})"
        ) from None


def members_of(data: bytes) -> dict[str, bytes]:
    """Return the members of an archive by their names, all of which are stored as they are.

    Raises:
        MismatchError: if it is no archive, or would unpack to more bytes than it has.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            check_entries(entries, len(data))
            return {entry.filename: archive.read(entry) for entry in entries}
    except MismatchError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything
        raise MismatchError(f"its archive is damaged: {first_line(error)}") from None


def check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Require what torch writes: different members, not compressed, no larger than the archive."""
    names = {entry.filename for entry in entries}
    if len(names) != len(entries) or len(entries) > MOST_MEMBERS:
        raise MismatchError("its archive has members of the same name, or too many")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise MismatchError("its archive is compressed, which torch never does")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise MismatchError(f"its archive of {size:,} bytes would unpack to {unpacked:,}")


def rewritten(members: Mapping[str, bytes]) -> io.BytesIO:
    """Return a new archive of what is accepted of these members."""
    if FLAT_MODEL in members:
        return stored(flat_members(members).items())
    folders = {name.partition("/")[0] for name in members}
    if len(folders) != 1 or not all("/" in name for name in members):
        raise MismatchError("its archive is not laid out as torch.export.save does it")
    inner = {name.partition("/")[2]: content for name, content in members.items()}
    accepted = program_members(inner)
    return stored((f"archive/{name}", content) for name, content in accepted.items())


def model_json(content: bytes) -> bytes:
    """Return a program's JSON as torch may read it."""
    return json.dumps(parse_json(content, checked_program)).encode()


# ---- torch 2.8 and later ------------------------------------------------------------------------


def program_members(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the members that torch is given, of an archive whose folder is left out."""
    if MODEL not in members:
        raise MismatchError(f"its archive lacks {MODEL}")
    left = {name: content for name, content in members.items() if not name.startswith("extra/")}
    accepted = {MODEL: model_json(left.pop(MODEL)), EXAMPLE_INPUTS: b""}
    for name in UNREAD:
        left.pop(name, None)
    for name, expected in VERSIONS.items():
        content = left.pop(name, None)
        if content is not None and expected.fullmatch(content) is None:
            raise MismatchError(f"{name} in its archive is something else")
        if content is not None:
            accepted[name] = content
    for folder, listed, pickled in (
        (WEIGHTS, WEIGHTS_LIST, PICKLED_WEIGHTS),
        (CONSTANTS, CONSTANTS_LIST, PICKLED_CONSTANTS),
    ):
        if pickled in left:
            accepted[pickled] = tensors_saved_anew(pickled, left.pop(pickled))
        elif listed in left:
            accepted |= listed_tensors(folder, listed, left)
        else:
            raise MismatchError(f"its archive lacks {listed}")
    if left:
        raise MismatchError(f"its archive holds {next(iter(left))}, accepted are plain tensors")
    return accepted


def listed_tensors(folder: str, listed: str, left: dict[str, bytes]) -> dict[str, bytes]:
    """Take the list of a folder's tensors, and the members that it names, out of `left`."""
    kind = "weight" if folder == WEIGHTS else "tensor"
    entry = record(
        {
            "path_name": text(rf"{kind}_\d{{1,9}}", expected=f"a plain tensor, such as {kind}_0"),
            "is_param": boolean,
            "use_pickle": one_of(False),
            "tensor_meta": stored_meta,
        }
    )
    content = parse_json(left.pop(listed), record({"config": mapping_of(entry, path)}))
    accepted = {listed: json.dumps(content).encode()}
    for name, entry in content["config"].items():
        member = folder + entry["path_name"]
        if member not in accepted and member not in left:
            raise MismatchError(f"its archive lacks {member}")
        accepted[member] = accepted[member] if member in accepted else left.pop(member)
        check_fits(name, entry["tensor_meta"], len(accepted[member]))
    return accepted


def check_fits(name: str, meta: Mapping[str, Any], size: int) -> None:
    """Require that a tensor lies in the bytes of its member, and is no larger than they are."""
    sizes = [each["as_int"] for each in meta["sizes"]]
    strides = [each["as_int"] for each in meta["strides"]]
    item = BYTES_OF_DTYPE.get(meta["dtype"])
    if item is None or len(sizes) != len(strides):
        raise MismatchError(f"{name} is no plain tensor of real numbers")
    reach = sum((count - 1) * stride for count, stride in zip(sizes, strides, strict=True))
    numbers = math.prod(sizes)
    reached = 0 if not numbers else meta["storage_offset"]["as_int"] + reach + 1
    if max(reached, numbers) * item > size:
        raise MismatchError(f"{name} needs more than the {size:,} bytes that are stored of it")


# ---- torch up to 2.7 ----------------------------------------------------------------------------


def flat_members(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the members that torch is given of an archive without a folder."""
    names = ("version", FLAT_MODEL, FLAT_STATE, FLAT_CONSTANTS)
    for name in members:
        if name not in (*names, FLAT_EXAMPLES) and not name.startswith("extra_files/"):
            raise MismatchError(f"its archive holds {name}, accepted are plain tensors")
    for name in names:
        if name not in members:
            raise MismatchError(f"its archive lacks {name}")
    if FLAT_VERSION.fullmatch(members["version"]) is None:
        raise MismatchError("version in its archive is something else")
    return {
        "version": members["version"],
        FLAT_MODEL: model_json(members[FLAT_MODEL]),
        FLAT_STATE: tensors_saved_anew(FLAT_STATE, members[FLAT_STATE]),
        FLAT_CONSTANTS: tensors_saved_anew(FLAT_CONSTANTS, members[FLAT_CONSTANTS]),
        FLAT_EXAMPLES: b"",
    }


def tensors_saved_anew(name: str, data: bytes) -> bytes:
    """Return what torch.save writes of the plain tensors that it wrote before.

    Raises:
        MismatchError: if there is anything else among them.
    """
    if not data:
        return b""
    inner = members_of(data)  # it is an archive within its bounds
    try:
        for content in inner.values():
            check_allocations(content)
        tensors = torch.load(stored(inner.items()), map_location="cpu", weights_only=True)
    except Exception:  # a damaged file raises nearly anything
        raise MismatchError(f"{name} is damaged, or holds more than plain tensors") from None
    check = mapping_of(plain_tensor, path)
    checked: dict[str, Tensor] = check(dict(tensors) if isinstance(tensors, dict) else tensors)
    check_tensors(Path(name), checked, len(data))
    buffer = io.BytesIO()
    torch.save(checked, buffer)
    return buffer.getvalue()


def plain_tensor(value: Any) -> Tensor:
    """Take a tensor, and no class of it that computes otherwise."""
    if type(value) not in (Tensor, nn.Parameter):
        raise MismatchError(f"expected a plain tensor, got a {type(value).__name__}")
    tensor: Tensor = value
    return tensor
