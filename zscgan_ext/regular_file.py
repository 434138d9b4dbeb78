"""Files that a user names: regular ones alone, since devices and pipes may never end."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def regular_file_size(file: Path) -> int:
    """Return the bytes of a regular file, links followed.

    Raises:
        OSError: if it is missing, or a folder, a device, a pipe or a socket.
    """
    status = file.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(file))
    return status.st_size


@contextmanager
def utf8_path(file: Path) -> Iterator[Path]:
    """Give a path under which libraries open a file that take paths in UTF-8 alone.

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
