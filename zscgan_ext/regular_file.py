"""Files that a user names: regular ones alone, since devices and pipes may never end."""

import errno
import os
import stat
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
