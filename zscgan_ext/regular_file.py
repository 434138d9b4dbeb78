"""Files that a user names: only regular ones, since devices and pipes may never end."""

import errno
import os
import stat
from pathlib import Path

LARGEST_WHOLE_FILE = 1 << 28  # bytes of a file that is read as text or JSON
# Holes in a file take no disk, but memory when it is read. Copying makes them of zeros, of which
# the weights of a classifier have few: more than this share of large files has to be written.
LARGE, SMALLEST_SHARE = 1 << 28, 1 / 16


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


def open_flags(*names: str) -> int:
    """Return flags of `os.open` for binary files, but for those that the system lacks."""
    flags = 0
    for name in (*names, "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return flags


def open_regular_file(file: Path) -> int:
    """Open a regular file for reading, links followed; return its descriptor.

    Raises:
        OSError: if it is missing, or something else.
    """
    regular_file_size(file)  # to open some devices does something already
    # A pipe that takes the place of the file meanwhile must not be waited for.
    return os.open(file, open_flags("O_RDONLY", "O_NONBLOCK"))


def require_written(descriptor: int, size: int) -> None:
    """Require that a large file is not made of holes, of which any number costs nothing.

    Args:
        descriptor: of the file, whose position is lost.
        size: its bytes.

    Raises:
        ValueError: if it is.
    """
    written = end = 0
    if not hasattr(os, "SEEK_DATA"):  # a system that does not tell
        return
    while size > LARGE and written < SMALLEST_SHARE * size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # which says that only a hole is left
                break
            raise ValueError(f"{size:,} bytes, only {written:,} of which were written") from None
        written += end - start
    os.lseek(descriptor, 0, os.SEEK_SET)


def written_file_size(file: Path) -> int:
    """Return the bytes of a regular file that is not made of holes, links followed.

    Raises:
        OSError: if it is missing, or something else.
        ValueError: if it is large and made of holes.
    """
    descriptor = open_regular_file(file)
    try:
        size = size_of(os.fstat(descriptor), file)
        require_written(descriptor, size)
    finally:
        os.close(descriptor)
    return size


def read_regular_file(file: Path, largest: int = LARGEST_WHOLE_FILE) -> bytes:
    """Return the content of a regular file, links followed.

    Args:
        file: its path.
        largest: bytes that it may have.

    Raises:
        OSError: if it is missing or something else.
        ValueError: if it is larger or made of holes, or its path cannot be one.
    """
    descriptor = open_regular_file(file)
    with os.fdopen(descriptor, "rb") as stream:
        size = size_of(os.fstat(descriptor), file)
        if size > largest:
            raise ValueError(f"{size:,} bytes, accepted are at most {largest:,}")
        require_written(descriptor, size)
        content = stream.read(size + 1)
    if len(content) > size:
        raise ValueError("it grows while it is read")
    return content
