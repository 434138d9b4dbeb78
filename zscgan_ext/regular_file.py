"""Files that a user names: only regular ones, since devices and pipes may never end."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LARGEST_WHOLE_FILE = 1 << 28  # bytes of a file that is read as text or JSON


def regular_file_size(file: Path) -> int:
    """Return the bytes of a regular file, links followed.

    Raises:
        OSError: if it is missing, or a folder, a device, a pipe or a socket.
    """
    return size_of(file.stat(), file)


def size_of(status: os.stat_result, file: Path) -> int:
    """Return the bytes of a regular file by its status.

    Raises:
        OSError: if it is the status of something else.
    """
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(file))
    return status.st_size


@contextmanager
def utf8_path(file: Path) -> Iterator[Path]:
    """Give a path under which libraries open a file that take only paths in UTF-8.

    Names of files are bytes, such as those of an old archive, and need not be text.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, f"file{file.suffix.encode('ascii', 'ignore').decode()}")
            link.symlink_to(file.absolute())
            yield link
        return
    yield file


def read_regular_file(file: Path, largest: int = LARGEST_WHOLE_FILE) -> bytes:
    """Return the content of a regular file, links followed.

    Args:
        file: its path.
        largest: bytes that it may have.

    Raises:
        OSError: if it is missing or something else.
        ValueError: if it is larger, or its path cannot be one.
    """
    regular_file_size(file)  # to open some devices does something already
    # A pipe that takes the place of the file meanwhile must not be waited for.
    flags = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    descriptor = os.open(file, os.O_RDONLY | sum(flags))
    with os.fdopen(descriptor, "rb") as stream:
        size = size_of(os.fstat(descriptor), file)
        if size > largest:
            raise ValueError(f"{size:,} bytes, accepted are at most {largest:,}")
        content = stream.read(size + 1)
    if len(content) > size:
        raise ValueError("it grows while it is read")
    return content
