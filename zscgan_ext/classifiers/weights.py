"""Reading a classifier's weights from a file, without ever running what the file holds."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from zscgan_ext.errors import InputError, first_line
from zscgan_ext.regular_file import read_regular_file, regular_file_size

# The keys under which training scripts keep a state dict, averaged weights first.
NESTS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema"),
    *("state_dict", "model_state_dict", "model", "params"),
)
# What `torch.optim.swa_utils.AveragedModel` keeps beside the weights.
COUNTER = "n_averaged"
LARGEST = 1 << 40  # bytes of a file
ZIP_SIGNATURE = b"PK\x03\x04"


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill a model with the weights of a safetensors file or a torch state dict.

    Values are converted to the model's dtypes. A state dict may lie under a key such as
    `state_dict` or `model`, averaged weights (EMA) are preferred, and what a wrapper such as
    DataParallel put before all names is removed.

    Raises:
        InputError: if the file is missing, damaged, holds pickled code or does not fit the model.
    """
    needed = {
        name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)
    }
    found = unwrap_names(read_state_dict(file), needed)
    check_names(file, found, needed)
    check_shapes(file, found, needed)
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
        size = regular_file_size(file)
        with file.open("rb") as stream:
            signature = stream.read(len(ZIP_SIGNATURE))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"weights: {file} cannot be read ({reason})") from None
    if not signature:
        raise InputError(f"weights: {file} is empty")
    if signature == ZIP_SIGNATURE:
        check_unpacked_size(file, size)
    content = read_safetensors(file) if file.suffix == ".safetensors" else read_checkpoint(file)
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"weights: {file} holds a {type(content).__name__}, not a state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            found = type(value).__name__
            raise InputError(
                f"weights: {file} is not a state dict, {name!r} is a {found}, not a tensor"
            )
    check_tensors(file, content, size)
    return dict(content)


def check_unpacked_size(file: Path, size: int) -> None:
    """Refuse an archive that announces more bytes than the file has; torch never compresses."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"weights: {file} is truncated or not a torch file ({first_line(error)})"
        ) from None
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
                f"weights: {file} has {name} as {kind}, needed are real numbers in a plain tensor"
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
        return dict(safetensors.torch.load_file(file))
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(
            f"weights: {file} is truncated or not a safetensors file ({first_line(error)})"
        ) from None


def read_checkpoint(file: Path) -> Any:
    """Read what `torch.save` wrote, tensors and plain containers only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(bounded(file), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Torch's own message advises to run the file's code.
        raise InputError(
            f"weights: {file} holds pickled code, which is never run, or is damaged; "
            "needed is a safetensors file or a state dict of tensors"
        ) from None
    except Exception:  # a damaged file raises nearly anything
        raise InputError(
            f"weights: {file} is truncated or not a torch file; "
            "needed is a safetensors file or a state dict of tensors"
        ) from None


def bounded(file: Path) -> Path | io.BytesIO:
    """Return what torch is to read: of a file that is no archive, its bytes.

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
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                check_allocations(archive.read(entry))
    return file


def check_allocations(content: bytes) -> None:
    """Refuse a pickle that makes bytes of any number, which torch lets it do.

    Raises:
        UnpicklingError: if it names what makes them, which no state dict needs.
    """
    if b"bytearray" in content:
        raise pickle.UnpicklingError("makes an array of bytes")


def unwrap_names(found: dict[str, Tensor], needed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before every name (`module.`, `_orig_mod.`, `model.`)."""
    if COUNTER not in needed:
        found = {name: value for name, value in found.items() if name != COUNTER}
    while True:
        wrappers = {name.partition(".")[0] for name in found if "." in name}
        if len(wrappers) != 1 or not all("." in name for name in found):
            return found
        wrapper = f"{wrappers.pop()}."
        if any(name.startswith(wrapper) for name in needed):
            return found
        found = {name.removeprefix(wrapper): value for name, value in found.items()}


def check_names(file: Path, found: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    """Require the model's names; files older than torch 0.4.1 have no num_batches_tracked."""
    missing = [
        name
        for name in needed
        if name not in found and not name.endswith(("num_batches_tracked", "_extra_state"))
    ]
    unexpected = [name for name in found if name not in needed]
    if missing:
        more = f", {len(missing)} missing in all" if len(missing) > 1 else ""
        hint = f" (it has {unexpected[0]} instead)" if unexpected else ""
        raise InputError(f"weights: {file} lacks {missing[0]}{more}{hint}")
    if unexpected:
        more = f", {len(unexpected)} such in all" if len(unexpected) > 1 else ""
        raise InputError(f"weights: {file} has {unexpected[0]}, which the model lacks{more}")


def check_shapes(file: Path, found: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    """Require the model's shapes."""
    wrong = [name for name, value in found.items() if value.shape != needed[name].shape]
    if wrong:
        name = wrong[0]
        more = f", {len(wrong)} wrong shapes in all" if len(wrong) > 1 else ""
        raise InputError(
            f"weights: {file} has {name} of shape {tuple(found[name].shape)}, "
            f"the model needs {tuple(needed[name].shape)}{more}"
        )
