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
from zscgan_ext.regular_file import open_flags
from zscgan_ext.run_folder.opened_folder import OpenedFolder

PARTIAL = ".partial"
NEW_FILE = open_flags("O_WRONLY", "O_CREAT", "O_EXCL", "O_NOFOLLOW")
MOST_PARTIAL = 100  # of other programs, or left behind by killed ones


@contextlib.contextmanager
def one_line_errors(file: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except RecursionError as error:  # of pathlib
        raise InputError(f"output: {file} is too deep in other folders") from error
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
    with one_line_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.closing(OpenedFolder(file.parent)) as folder,
            stream_in(folder, file.name) as stream,
        ):
            stream.write(data)


@contextlib.contextmanager
def stream_in(folder: OpenedFolder, name: str) -> Iterator[BinaryIO]:
    """Open a stream of what becomes a file of an opened folder, whole or not at all.

    Whatever takes the place of the folder or of the file meanwhile, nothing else is written.

    Args:
        folder: that was opened.
        name: of the file in it.

    Raises:
        OSError: if it cannot be written.
    """
    partial, stream = new_partial(folder, name)
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        folder.replace(partial, name)
        folder.sync()
    finally:
        with contextlib.suppress(FileNotFoundError):
            folder.unlink(partial)


def new_partial(folder: OpenedFolder, name: str) -> tuple[str, BinaryIO]:
    """Create the file that is renamed when it is whole, under a name that nothing has yet.

    Whatever stands under the first name may be somebody's, or a link that leads elsewhere.
    """
    for count in itertools.count(1):
        number = "" if count == 1 else f".{count}"
        partial = f".{name}{number}{PARTIAL}"
        try:
            return partial, os.fdopen(folder.open(partial, NEW_FILE), "wb")
        except FileExistsError:
            if count == MOST_PARTIAL:
                raise
    raise AssertionError


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the JSON file of this content, its keys sorted."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
