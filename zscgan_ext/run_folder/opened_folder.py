"""Folders that were opened, and locks on files, with what each system has for them.

Elsewhere than on Windows, what is done in an opened folder is done in that one, whatever takes the
place of its path meanwhile. Windows opens no folders: there its path stands for it.
"""

import contextlib
import errno
import importlib
import os
from pathlib import Path
from typing import Any

from zscgan_ext.regular_file import open_flags

LOCKED_BYTE = 1 << 30  # behind all that a locked file holds: Windows keeps others from reading it


def optional_module(name: str) -> Any:
    """Return a module of the standard library, None on systems that lack it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


FCNTL, MSVCRT = optional_module("fcntl"), optional_module("msvcrt")


class OpenedFolder:
    """A folder, in which files are opened, replaced and deleted by their names.

    Args:
        path: of the folder, or its name in `parent`.
        parent: the opened folder that it is in; none for a path.
        follows_links: whether the path may be a link.

    Raises:
        OSError: if it cannot be opened.
    """

    def __init__(
        self, path: Path | str, parent: "OpenedFolder | None" = None, follows_links: bool = True
    ) -> None:
        self.path: Path = Path(path) if parent is None else parent.path / path
        self.descriptor: int | None = None
        if os.open in os.supports_dir_fd:
            flags = open_flags("O_DIRECTORY", *(() if follows_links else ("O_NOFOLLOW",)))
            self.descriptor = os.open(path, flags, **(parent.at() if parent else {}))
        elif not follows_links and self.path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        elif not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def at(self, name: str = "dir_fd") -> dict[str, int]:
        """Return the argument that has a function of `os` look into this folder."""
        return {} if self.descriptor is None else {name: self.descriptor}

    def name(self, name: str) -> str:
        """Return a name as functions of `os` take it, together with `at`."""
        return name if self.descriptor is not None else str(self.path / name)

    def close(self) -> None:
        """Let go of the folder."""
        if self.descriptor is not None:
            os.close(self.descriptor)

    def status(self) -> os.stat_result:
        """Return the status of the folder."""
        return os.stat(self.path if self.descriptor is None else self.descriptor)

    def open(self, name: str, flags: int) -> int:
        """Open or create a file; return its descriptor."""
        return os.open(self.name(name), flags, 0o666, **self.at())

    def make_folder(self, name: str) -> None:
        """Make a folder."""
        os.mkdir(self.name(name), **self.at())

    def remove_folder(self, name: str) -> None:
        """Delete an empty folder."""
        os.rmdir(self.name(name), **self.at())

    def replace(self, source: str, target: str) -> None:
        """Give a file another name, whose file it replaces."""
        places = self.at("src_dir_fd") | self.at("dst_dir_fd")
        os.replace(self.name(source), self.name(target), **places)

    def unlink(self, name: str) -> None:
        """Delete a file."""
        os.unlink(self.name(name), **self.at())

    def sync(self) -> None:
        """Have the names in it survive a loss of power."""
        if self.descriptor is not None:
            os.fsync(self.descriptor)


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Read bytes of an opened file."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, count)


def lock_file(descriptor: int) -> None:
    """Lock an opened file until its descriptor is closed.

    Raises:
        BlockingIOError: if another process has locked it.
        OSError: ENOSYS if the system has no locks, and what it says of a file system without.
    """
    if FCNTL is not None:
        FCNTL.flock(descriptor, FCNTL.LOCK_EX | FCNTL.LOCK_NB)
    elif MSVCRT is not None:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        try:
            MSVCRT.locking(descriptor, MSVCRT.LK_NBLCK, 1)
        except PermissionError as error:  # which is how Windows says it
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def unlock_file(descriptor: int) -> None:
    """Unlock a file for processes that inherited its descriptor too, where these could hold it."""
    if FCNTL is not None:
        with contextlib.suppress(OSError):  # of a file system without locks
            FCNTL.flock(descriptor, FCNTL.LOCK_UN)
