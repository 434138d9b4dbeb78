"""Reading a classifier's weights from a file, without ever running what the file holds."""

import io
import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from zscgan_ext.classifiers.checkpoint_types import readable_types
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.regular_file import read_regular_file, written_file_size
from zscgan_ext.safetensors_content import read_safetensors_file

# The keys under which training scripts keep a state dict, averaged weights first.
NESTS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema"),
    *("state_dict", "model_state_dict", "model", "params", "net", "network", "weights"),
)
# What `torch.optim.swa_utils.AveragedModel` keeps beside the weights.
COUNTER = "n_averaged"
LARGEST = 1 << 40  # bytes of a file
ZIP_SIGNATURE = b"PK\x03\x04"
PICKLE_SIGNATURE = b"\x80"
SAFETENSORS_LENGTH = 8  # bytes that hold the length of the header, which is JSON
EXPORTED_PROGRAM = "a program of torch.export; give it as --classifier, named .pt2"
# What archives hold that are programs: the name of a file in them, and what is said of it.
PROGRAMS = {
    "constants.pkl": (
        "a TorchScript archive, which is a program; expected what "
        "torch.save(model.state_dict(), FILE) or safetensors writes"
    ),
    "archive_format": EXPORTED_PROGRAM,
    "serialized_exported_program.json": EXPORTED_PROGRAM,  # as torch 2.6 writes it
}
# What torch's message names as not allowed.
REFUSED_NAME = re.compile(r"GLOBAL (\S+)")
# The list of types that torch allows is one for the whole process.
ALLOWED_TYPES = threading.Lock()


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill a model with the weights of a safetensors file or a torch state dict.

    Values are converted to the model's dtypes. A state dict may lie under a key such as
    `state_dict` or `model`, averaged weights (EMA) are preferred, and what a wrapper such as
    DataParallel put before all names is removed.

    Raises:
        InputError: if the file is missing, damaged, holds pickled code or does not fit the model.
    """
    fill(model, read_state_dict(file), file)


def fill(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Fill a model with tensors that were read from a file, as `load_weights` does.

    Raises:
        InputError: if they do not fit the model.
    """
    expected = {
        name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)
    }
    found = unwrap_names(tensors, expected)
    check_names(file, found, expected)
    check_shapes(file, found, expected)
    try:
        model.load_state_dict(found, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"weights: {file} does not fit the model ({reason})") from None
    check_finite(str(file), model)


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read the named tensors of a file.

    Raises:
        InputError: if the file cannot be read or holds something else.
    """
    try:
        size = written_file_size(file)
        with file.open("rb") as stream:
            start = stream.read(SAFETENSORS_LENGTH + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"weights: {file} cannot be read ({reason})") from None
    if not start:
        raise InputError(f"weights: {file} is empty")
    if start.startswith(ZIP_SIGNATURE):
        check_archive(file, size)
    read = read_safetensors if is_safetensors(file, start, size) else read_checkpoint
    content: Any = read(file)
    for nest in NESTS:
        # As of `dict`: attributes that a file gives an OrderedDict may hide its methods.
        if isinstance(content, dict) and isinstance(dict.get(content, nest), dict):
            content = dict.get(content, nest)
    if not isinstance(content, dict) or not dict.__len__(content):
        raise InputError(f"weights: {file} holds a {type(content).__name__}, not a state dict")
    tensors: dict[str, Tensor] = {}
    for name, value in dict.items(content):
        if not isinstance(name, str) or not isinstance(value, Tensor):
            found = type(value).__name__
            raise InputError(
                f"weights: {file} is not a state dict, {name!r} is a {found}, not a tensor"
            )
        tensors[name] = value
    check_tensors(file, tensors, size)
    return tensors


def is_safetensors(file: Path, start: bytes, size: int) -> bool:
    """Return True if a file is safetensors by its first bytes, else by its name."""
    if start.startswith(ZIP_SIGNATURE):
        return False
    length = int.from_bytes(start[:SAFETENSORS_LENGTH], "little")
    if start[SAFETENSORS_LENGTH:] == b"{" and length <= size:
        return True
    return file.suffix == ".safetensors" and not start.startswith(PICKLE_SIGNATURE)


def check_archive(file: Path, size: int) -> None:
    """Refuse an archive that is a program, or announces more bytes than it has.

    Torch never compresses.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            files = [entry.filename for entry in archive.infolist()]
            names = {
                *files,
                *(file.partition("/")[2] for file in files),
            }  # below one folder or none
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"weights: {file} is truncated or not a torch file ({first_line(error)})"
        ) from None
    for name, found in PROGRAMS.items():
        if name in names:
            raise InputError(f"weights: {file} is {found}")
    if len(set(files)) < len(files):
        raise InputError(f"weights: {file} is damaged, it has members of the same name")
    if unpacked > size:
        raise InputError(
            f"weights: {file} has {size:,} bytes and would unpack to {unpacked:,}, accepted are "
            "files as torch.save writes them, uncompressed"
        )


def check_tensors(file: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    """Require plain tensors of real numbers, no larger together than the file they come from."""
    for name, value in tensors.items():
        is_plain = value.layout == torch.strided and value.is_cpu and not value.is_nested
        if not is_plain or value.is_quantized or value.is_complex():
            kind = f"{value.dtype}, {value.layout}, {value.device.type}"
            raise InputError(
                f"weights: {file}: expected real numbers in a plain tensor, got {name} as {kind}"
            )
    storages = (value.untyped_storage() for value in tensors.values())
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if held > size:
        raise InputError(
            f"weights: {file} has {size:,} bytes, but announces tensors of {held:,} bytes"
        )


def check_finite(source: str, model: nn.Module) -> None:
    """Require that a model holds neither NaN nor infinite values.

    Raises:
        InputError: naming the source and the first tensor that does.
    """
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not bool(value.isfinite().all()):
            raise InputError(f"weights: {source} has NaN or infinite values in {name}")


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    try:
        tensors, _ = read_safetensors_file(file)
        return tensors
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(
            f"weights: {file} is truncated or not a safetensors file ({first_line(error)})"
        ) from None


def read_checkpoint(file: Path) -> Any:
    """Read what `torch.save` wrote: tensors and plain containers; nothing is kept of plain types.

    `checkpoint_types` lists those.
    """
    try:
        with (
            ALLOWED_TYPES,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(readable_types()),
            bounded(file) as stream,  # of a file torch would look at the name
        ):
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own message advises to run the file's code.
        refused = REFUSED_NAME.search(str(error))
        named = f" ({refused[1]})" if refused else ""
        raise InputError(
            f"weights: {file} holds pickled code, which is never run{named}, or is damaged; "
            "expected a safetensors file or a state dict of tensors"
        ) from None
    except Exception:  # a damaged file raises nearly anything
        raise InputError(
            f"weights: {file} is truncated or not a torch file; "
            "expected a safetensors file or a state dict of tensors"
        ) from None


def bounded(file: Path) -> BinaryIO:
    """Open what torch is to read, in memory, where nothing changes it: an archive, or bytes.

    A pickle announces the lengths of what it holds, and a file would be asked for as many bytes as
    that, before it is known how many there are.
    """
    with file.open("rb") as stream:
        is_archive = stream.read(len(ZIP_SIGNATURE)) == ZIP_SIGNATURE
    if not is_archive:
        data = read_regular_file(file, LARGEST)
        check_allocations(data)
        return io.BytesIO(data)
    with zipfile.ZipFile(file) as archive:
        return stored(checked_members(archive))


def checked_members(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """Yield the members of an archive by their names.

    Raises:
        UnpicklingError: as `check_allocations`.
    """
    for entry in archive.infolist():
        content = archive.read(entry)
        if entry.filename.endswith(".pkl"):
            check_allocations(content)
        yield entry.filename, content


def stored(members: Iterable[tuple[str, bytes]]) -> io.BytesIO:
    """Write members, by their names, as an archive that torch is to read.

    In the bytes of another archive torch's own reader may find other members than were checked: it
    looks for their list elsewhere where bytes stand before an archive, or two lists in it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def check_allocations(content: bytes) -> None:
    """Refuse a pickle that makes bytes of any number, which torch lets it do.

    Raises:
        UnpicklingError: if it names what makes them, which no state dict needs.
    """
    if b"bytearray" in content:
        raise pickle.UnpicklingError("makes an array of bytes")


def unwrap_names(found: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before every name (`module.`, `_orig_mod.`, `model.`)."""
    if COUNTER not in expected:
        found = {name: value for name, value in found.items() if name != COUNTER}
    while True:
        wrappers = {name.partition(".")[0] for name in found if "." in name}
        if len(wrappers) != 1 or not all("." in name for name in found):
            return found
        wrapper = f"{wrappers.pop()}."
        if any(name.startswith(wrapper) for name in expected):
            return found
        found = {name.removeprefix(wrapper): value for name, value in found.items()}


def check_names(file: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Require the model's names; files older than torch 0.4.1 have no num_batches_tracked."""
    missing = [
        name
        for name in expected
        if name not in found and not name.endswith(("num_batches_tracked", "_extra_state"))
    ]
    unexpected = [name for name in found if name not in expected]
    if missing:
        more = f", {len(missing)} missing in all" if len(missing) > 1 else ""
        hint = f" (it has {unexpected[0]} instead)" if unexpected else ""
        raise InputError(f"weights: {file} lacks {missing[0]}{more}{hint}")
    if unexpected:
        more = f", {len(unexpected)} such in all" if len(unexpected) > 1 else ""
        raise InputError(f"weights: {file} has {unexpected[0]}, which the model lacks{more}")


def check_shapes(file: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Require the model's shapes."""
    wrong = [name for name, value in found.items() if value.shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        more = f", {len(wrong)} wrong shapes in all" if len(wrong) > 1 else ""
        raise InputError(
            f"weights: {file}: expected {name} of shape {tuple(expected[name].shape)}, "
            f"got {tuple(found[name].shape)}{more}"
        )
