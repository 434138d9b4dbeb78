"""The files that runs wrote into a folder: exactly these may be replaced and deleted.

A list in the folder names them, one on a line, each before it is written. Of the list, only names
count that runs give: a list that somebody changed cannot have anything else deleted. While a
program writes into the folder it holds a lock on the list, which keeps all others out.

The folder and those in it are opened, links refused, and all that is done to files is done in what
was opened: somebody who puts a link in their place meanwhile has nothing written elsewhere.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

from zscgan_ext.errors import InputError, one_line
from zscgan_ext.regular_file import open_flags
from zscgan_ext.run_folder.opened_folder import (
    FCNTL,
    OpenedFolder,
    lock_file,
    read_at,
    unlock_file,
)
from zscgan_ext.run_folder.whole_file import PARTIAL, one_line_errors, stream_in

LIST = "run-files.txt"
HEADER = "# What zscgan_ext wrote here, and all that --overwrite deletes.\n"
LARGEST_LIST = 1 << 26  # bytes
# Of some network file systems, and of systems without any.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# How a file is opened that grows: no link, and no pipe that would be waited for.
GROWING = ("O_CREAT", "O_APPEND", "O_NOFOLLOW", "O_NONBLOCK")
# The attributes of a file on Linux (chattr), of which two keep even root from deleting it.
READ_ATTRIBUTES, UNDELETABLE = 0x80086601, 0x10 | 0x20

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
        self.process = os.getpid()
        with contextlib.ExitStack() as opened:
            self.opened_folder = OpenedFolder(folder, follows_links=False)
            opened.callback(self.opened_folder.close)
            self.folder_identity = identity(self.opened_folder.status())
            self.descriptor = open_list(self.opened_folder)
            opened.callback(os.close, self.descriptor)
            self.identity = identity(os.fstat(self.descriptor))
            if self.identity not in self.in_use:
                lock(self.descriptor, folder)
            self.names = self.read()
            self.descriptors = opened.pop_all()

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
            own.descriptors.close()
            shared.folder, shared.names = folder, own.names
            own = shared
        cls.in_use[own.identity] = own
        own.users += 1
        return own

    def close(self) -> None:
        """Let go of the folder, if no other user is left."""
        self.users -= 1
        if self.users == 0:
            self.in_use.pop(self.identity, None)
            if os.getpid() == self.process:  # one that was forked lets go of nothing of its parent
                # Such a one may live on, and would hold the folder with what it inherited.
                unlock_file(self.descriptor)
            self.descriptors.close()

    def read(self) -> dict[str, None]:
        """Return the names that the list holds, in their order, but for those no run gives.

        Raises:
            OSError: if it is no such list.
        """
        size = os.fstat(self.descriptor).st_size
        if size > LARGEST_LIST:
            raise OSError(errno.EFBIG, f"is larger than {LARGEST_LIST} bytes")
        text = read_at(self.descriptor, size, 0).decode(errors="replace")
        if text and not text.startswith(HEADER):
            raise OSError(errno.EEXIST, "is a file of something else; move it away")
        whole_lines = text.split("\n")[:-1]
        return dict.fromkeys(name for name in whole_lines if self.is_name(name))

    # ---- writing ---------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder, which is there whole or not at all."""
        with self.stream(name) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Open a stream of what becomes a file when it ends, and nothing if an error ends it."""
        with (
            one_line_errors(self.claim(name)),
            self.place_of(name) as (folder, last),
            stream_in(folder, last) as stream,
        ):
            yield stream

    def grow(self, name: str, data: bytes) -> None:
        """Let a file of the folder grow by these bytes, all or none of them."""
        with one_line_errors(self.claim(name)), self.place_of(name) as (folder, last):
            descriptor = folder.open(last, open_flags("O_WRONLY", *GROWING))
            with os.fdopen(descriptor, "ab", 0) as stream:
                require_only_here(os.fstat(descriptor))
                end = stream.seek(0, os.SEEK_END)
                try:
                    # Without a buffer, a full disk can take a part and say so.
                    if stream.write(data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    stream.truncate(end)
                    raise

    @contextlib.contextmanager
    def place_of(self, name: str) -> Iterator[tuple[OpenedFolder, str]]:
        """Open the folder of a file, made where it is missing, and give it with the name in it.

        Raises:
            OSError: if it cannot be opened, or is a link.
        """
        inner, slash, last = name.rpartition("/")
        if not slash:
            yield self.opened_folder, last
            return
        with contextlib.suppress(FileExistsError):
            self.opened_folder.make_folder(inner)
        with contextlib.closing(OpenedFolder(inner, self.opened_folder, False)) as folder:
            yield folder, last

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
        last = read_at(self.descriptor, 1, end - 1) if end else b"\n"
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

    def check_deletable(self, names: Iterable[str]) -> list[str]:
        """Return those of these names that are there, every one of which can be deleted.

        Raises:
            InputError: if one is something else than a file, or its folder cannot be written.
        """
        self.require_folder()
        found = []
        for name in names:
            check_place(self.folder, name)
            file = self.folder / name
            if os.path.lexists(file):
                if not may_delete(file):
                    raise InputError(f"output: {file} cannot be deleted (Permission denied)")
                for kept in (file, file.parent):
                    if has_attributes(kept, UNDELETABLE):
                        raise InputError(
                            f"output: {file} cannot be deleted ({kept} is immutable or can only "
                            f"grow; chattr -ia takes that away)"
                        )
                found.append(name)
        return found

    def delete(self, names: Iterable[str]) -> None:
        """Delete files of the list; all are checked before the first is deleted."""
        self.unlink(self.check_deletable([name for name in names if name in self.names]))

    def delete_partial(self) -> None:
        """Delete what a killed run had not written to its end."""
        self.unlink(self.check_deletable([partial_name(name) for name in self.names]))

    def delete_all(self) -> None:
        """Delete all files of the list, which is empty then; they and it are checked before."""
        names = [*self.names, *map(partial_name, self.names)]
        found = self.check_deletable(names)
        with one_line_errors(self.folder / LIST):
            os.ftruncate(self.descriptor, os.fstat(self.descriptor).st_size)  # as it is
        self.unlink(found)
        with one_line_errors(self.folder / LIST):
            os.ftruncate(self.descriptor, 0)
        self.names.clear()

    def unlink(self, names: Iterable[str]) -> None:
        """Delete files of these names."""
        for name in names:
            with (
                one_line_errors(self.folder / name),
                contextlib.suppress(FileNotFoundError),
                self.place_of(name) as (folder, last),
            ):
                folder.unlink(last)


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


def open_list(folder: OpenedFolder) -> int:
    """Open the list of an opened folder for reading and appending; return its descriptor.

    Raises:
        OSError: if it cannot be, or is a link, under two names, or no file.
    """
    descriptor = folder.open(LIST, open_flags("O_RDWR", *GROWING))
    try:
        require_only_here(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def require_only_here(status: os.stat_result) -> None:
    """Require a file that grows nowhere else.

    Raises:
        OSError: if it is under two names, or no file.
    """
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no file; move it away")
    if status.st_nlink > 1:
        raise OSError(errno.EMLINK, "it has a second name, under which it would grow too")


def may_delete(file: Path) -> bool:
    """Return True if a file may be deleted: in a sticky folder, only what is one's own."""
    if not os.access(file.parent, os.W_OK | os.X_OK):
        return False
    if not hasattr(os, "geteuid"):  # nor sticky folders
        return True
    folder, user = os.stat(file.parent), os.geteuid()
    is_free = not folder.st_mode & stat.S_ISVTX or user == 0
    return is_free or user in (folder.st_uid, os.lstat(file).st_uid)


def has_attributes(path: Path, attributes: int) -> bool:
    """Return True if a file or folder has one of some attributes, as far as it can be told."""
    if FCNTL is None or sys.platform != "linux":
        return False
    try:
        # Of what cannot be read, or is on a file system without them, they are not known.
        descriptor = os.open(path, open_flags("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK"))
    except OSError:
        return False
    try:
        found = FCNTL.ioctl(descriptor, READ_ATTRIBUTES, bytes(8))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return bool(int.from_bytes(found[:4], sys.byteorder) & attributes)


def lock(descriptor: int, folder: Path) -> None:
    """Lock the list of a folder until its descriptor is closed.

    Raises:
        InputError: if another process has locked it.
    """
    try:
        lock_file(descriptor)
    except BlockingIOError:
        raise InputError(
            f"output: {folder} is in use by another run; wait for its end, or stop it, or choose "
            "another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        line = one_line(
            f"warning: {folder} is on a file system without locks; start no other run there"
        )
        print(line, file=sys.stderr, flush=True)


# A process that was forked has the lock, but is another one: it opens and locks anew.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=OwnFiles.in_use.clear)
