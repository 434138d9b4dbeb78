"""Writing a file so that it is there whole or not at all."""

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from zscgan_ext.errors import CURRENT_FOLDER_IS_GONE, InputError, current_folder_is_gone

PARTIAL = ".partial"
MOST_PARTIAL = 100  # of other programs, or left behind by killed ones


@contextlib.contextmanager
def one_line_errors(file: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.ENOENT and current_folder_is_gone():
            reason = CURRENT_FOLDER_IS_GONE
        raise InputError(f"output: {file} cannot be written ({reason})") from error


def write_whole(file: Path, data: bytes) -> None:
    """Write a file, and its folder where that is missing, so that it is there whole or not at all.

    Raises:
        InputError: if it cannot be written.
    """
    with whole_stream(file) as stream:
        stream.write(data)


@contextlib.contextmanager
def whole_stream(file: Path) -> Iterator[BinaryIO]:
    """Open a stream of what becomes a file when it ends, and nothing if it ends with an error.

    Raises:
        InputError: if it cannot be written.
    """
    with one_line_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial, stream = new_partial(file)
        try:
            with stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, file)
            sync_folder(file.parent)
        finally:
            partial.unlink(missing_ok=True)


def new_partial(file: Path) -> tuple[Path, BinaryIO]:
    """Create the file that is renamed when it is whole, under a name that nothing has yet.

    Whatever stands under the first name may be somebody's, or a link that leads elsewhere.
    """
    for count in itertools.count(1):
        number = "" if count == 1 else f".{count}"
        partial = file.with_name(f".{file.name}{number}{PARTIAL}")
        try:
            return partial, partial.open("xb")
        except FileExistsError:
            if count == MOST_PARTIAL:
                raise
    raise AssertionError


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the JSON file of this content, its keys sorted."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
