"""The files that runs wrote into a folder: exactly these may be replaced and deleted.

A list in the folder names them, one on a line, each before it is written. Of the list, only names
count that runs give: a list that somebody changed cannot have anything else deleted. While a
program writes into the folder it holds a lock on the list, which keeps all others out.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from zscgan_ext.errors import InputError
from zscgan_ext.run_folder.whole_file import PARTIAL, one_line_errors, write_whole

LIST = "run-files.txt"
HEADER = "# What zscgan_ext wrote here, and all that --overwrite deletes.\n"
LARGEST_LIST = 1 << 26  # bytes
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems

Identity = tuple[int, int]  # of a file: device and number on it


class OwnFiles:
    """The list of a folder's own files, opened and locked; `opened` gives one for a folder.

    All users of one process share it.

    Args:
        folder: that exists.
        is_name: tells of a path in the folder whether runs write such files.
    """

    in_use: ClassVar[dict[Identity, "OwnFiles"]] = {}

    def __init__(self, folder: Path, is_name: Callable[[str], bool]) -> None:
        self.folder = folder
        self.is_name = is_name
        self.users = 0
        self.folder_identity = identity(os.stat(folder))
        self.descriptor = open_list(folder / LIST)
        try:
            self.identity = identity(os.fstat(self.descriptor))
            if self.identity not in self.in_use:
                lock(self.descriptor, folder)
            self.names = self.read()
        except BaseException:
            os.close(self.descriptor)
            raise

    @classmethod
    def opened(cls, folder: Path, is_name: Callable[[str], bool]) -> "OwnFiles":
        """Return the list of a folder, to be closed by every user; it is made where it is missing.

        Raises:
            InputError: if the folder is in use by another process, or the list cannot be written
                or is something else.
        """
        with one_line_errors(folder / LIST):
            if kind_of(folder / LIST) == "link":
                raise InputError(f"output: {folder / LIST} is a link, expected a file; move it")
            own = cls(folder, is_name)
        shared = cls.in_use.get(own.identity)
        if shared is not None:
            os.close(own.descriptor)
            shared.folder, shared.names = folder, own.names
            own = shared
        cls.in_use[own.identity] = own
        own.users += 1
        return own

    def close(self) -> None:
        """Let go of the folder, if no other user is left."""
        self.users -= 1
        if self.users == 0:
            del self.in_use[self.identity]
            os.close(self.descriptor)

    def read(self) -> dict[str, None]:
        """Return the names that the list holds, in their order, but for those no run gives.

        Raises:
            OSError: if it is no such list.
        """
        size = os.fstat(self.descriptor).st_size
        if size > LARGEST_LIST:
            raise OSError(errno.EFBIG, f"is larger than {LARGEST_LIST} bytes")
        text = os.pread(self.descriptor, size, 0).decode(errors="replace")
        if text and not text.startswith(HEADER):
            raise OSError(errno.EEXIST, "is a file of something else; move it away")
        whole_lines = text.split("\n")[:-1]
        return dict.fromkeys(name for name in whole_lines if self.is_name(name))

    # ---- writing ---------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder, which is there whole or not at all."""
        write_whole(self.claim(name), data)

    def claim(self, name: str) -> Path:
        """Put a name on the list, after which its file may be written; return the file's path.

        Raises:
            InputError: if the folder is gone, something else stands there, or the list is full.
        """
        file = self.folder / name
        self.require_folder()
        check_place(self.folder, name)
        if name in self.names:
            return file
        if os.path.lexists(file):
            raise InputError(not_ours(self.folder, name))
        with one_line_errors(file):
            self.append(f"{name}\n")
        self.names[name] = None
        return file

    def adopt(self, names: Iterable[str]) -> None:
        """Put files on the list that stand there already."""
        for name in names:
            if name not in self.names:
                with one_line_errors(self.folder / name):
                    self.append(f"{name}\n")
                self.names[name] = None

    def append(self, line: str) -> None:
        """Let the list grow by a line, or not at all."""
        end = os.fstat(self.descriptor).st_size
        last = os.pread(self.descriptor, 1, end - 1) if end else b"\n"
        start = HEADER if not end else "" if last == b"\n" else "\n"
        data = (start + line).encode()
        try:
            if os.write(self.descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.descriptor)
        except OSError:
            os.ftruncate(self.descriptor, end)
            raise

    def require_folder(self) -> None:
        """Require that the folder is still the one that was opened.

        Raises:
            InputError: telling what to do if not.
        """
        try:
            is_same = identity(os.stat(self.folder)) == self.folder_identity
            is_same &= identity(os.lstat(self.folder / LIST)) == self.identity
        except OSError:
            is_same = False
        if not is_same:
            raise InputError(
                f"output: {self.folder} or its {LIST} was deleted, moved or replaced meanwhile; if "
                "it was moved, --resume its new place resumes from its last checkpoint, otherwise "
                "start the run again"
            )

    # ---- deleting --------------------------------------------------------------------------------

    def check_deletable(self, names: Iterable[str]) -> list[Path]:
        """Return the files of these names that are there, every one of which can be deleted.

        Raises:
            InputError: if one is something else than a file, or its folder cannot be written.
        """
        self.require_folder()
        files = []
        for name in names:
            check_place(self.folder, name)
            file = self.folder / name
            if os.path.lexists(file):
                if not os.access(file.parent, os.W_OK | os.X_OK):
                    raise InputError(f"output: {file} cannot be deleted (Permission denied)")
                files.append(file)
        return files

    def delete(self, names: Iterable[str]) -> None:
        """Delete files of the list; all are checked before the first is deleted."""
        for file in self.check_deletable([name for name in names if name in self.names]):
            with one_line_errors(file):
                file.unlink(missing_ok=True)

    def delete_partial(self) -> None:
        """Delete what a killed run had not written to its end."""
        names = [partial_name(name) for name in self.names]
        for file in self.check_deletable(names):
            with one_line_errors(file):
                file.unlink(missing_ok=True)

    def delete_all(self) -> None:
        """Delete all files of the list, which is empty then; they are checked before."""
        names = [*self.names, *map(partial_name, self.names)]
        for file in self.check_deletable(names):
            with one_line_errors(file):
                file.unlink(missing_ok=True)
        with one_line_errors(self.folder / LIST):
            os.ftruncate(self.descriptor, 0)
        self.names.clear()


def partial_name(name: str) -> str:
    """Return the name under which a file of the list is written before it is whole."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}.{last}{PARTIAL}"


def not_ours(folder: Path, name: str) -> str:
    """Say that a file stands in the way which no run wrote."""
    return (
        f"output: {folder} holds {name}, which {LIST} does not list as written by a run and which "
        "is therefore kept; move it, or choose another folder"
    )


def check_place(folder: Path, name: str) -> None:
    """Require that a name leads to a file in this folder, or to none yet.

    Raises:
        InputError: if there is a link, or something else than a file.
    """
    file = folder / name
    parent = file.parent
    if parent != folder and os.path.lexists(parent):
        require_folder(parent)
    with one_line_errors(file):
        kind = kind_of(file)
    if kind not in (None, "file"):
        raise InputError(f"output: {file} is a {kind}, expected a file or nothing; move it")


def require_folder(path: Path) -> None:
    """Require a folder that is no link.

    Raises:
        InputError: telling what it is.
    """
    kind = kind_of(path)
    if kind != "folder":
        advice = "; give the folder that it leads to" if kind == "link" else ""
        raise InputError(f"output: {path} is a {kind}, expected a folder{advice}")


def kind_of(path: Path) -> str | None:
    """Say what stands at a path, links not followed; None for nothing."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    names = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    return names.get(stat.S_IFMT(mode), "device, pipe or socket")


def identity(status: os.stat_result) -> Identity:
    """Return what tells a file from all others."""
    return status.st_dev, status.st_ino


def open_list(file: Path) -> int:
    """Open a list for reading and appending; return its descriptor.

    Raises:
        OSError: if it cannot be, or is a link, under two names, or no file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no file of only this folder; move it away")
    return descriptor


def lock(descriptor: int, folder: Path) -> None:
    """Lock the list of a folder until its descriptor is closed.

    Raises:
        InputError: if another process has locked it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"output: {folder} is in use by another run; wait for its end, or stop it, or choose "
            "another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
