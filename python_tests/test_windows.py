"""Without what Windows lacks: the package is imported, and a run writes its folder and locks it."""

import os
import subprocess
import sys

from runs import PYTHONPATH, TINY

from zscgan_ext.run_folder.own_files import LIST

# What Python has there: no such modules, functions and flags, and no descriptors of folders.
# msvcrt.locking is what it is there: a lock of bytes that another process cannot have.
HIDDEN = """
import errno, fcntl, os, signal, sys, types

def locking(descriptor, mode, count):
    assert mode == 2
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None

import shutil, subprocess, tempfile, torch, torchvision, matplotlib.font_manager
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2) if LOCKS else None
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "pread", "pwrite", "preadv",
             "geteuid", "getuid", "register_at_fork", "fork", "fchmod", "sched_getaffinity",
             "O_PATH", "fchdir", "SEEK_DATA", "SEEK_HOLE", "uname", "getloadavg", "statvfs",
             "posix_fallocate", "sysconf"):
    delattr(os, name)
del signal.SIGHUP, signal.SIGKILL
os.supports_dir_fd.clear()
shutil._use_fd_functions = False
opened = os.open

def open_file(path, flags, mode=0o777, *, dir_fd=None):
    if dir_fd is not None:
        raise NotImplementedError("dir_fd unavailable on this platform")
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return opened(path, flags, mode)

os.open = open_file
"""
TRAIN_AND_HOLD = """
from pathlib import Path
from zscgan_ext.run_folder.files import RunFolder
from zscgan_ext.train import main
assert main(sys.argv[1:]) == 0
assert main(sys.argv[1:]) == 2  # there is one
held = RunFolder(Path("run"), resume=True)
held.append("metrics.jsonl", b"1\\r\\n")
held.append("metrics.jsonl", b"2\\n")
print("held", flush=True)
sys.stdin.read()
"""
HOLD = """
from pathlib import Path
from zscgan_ext.errors import InputError
from zscgan_ext.run_folder.files import RunFolder
for folder in sys.argv[1:]:
    try:
        RunFolder(Path(folder), resume=True)
    except InputError as error:
        print(error, file=sys.stderr)
"""


def start(code, *arguments, folder, locks=True):
    command = [sys.executable, "-c", f"LOCKS = {locks}\n" + HIDDEN + code, *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    return subprocess.Popen(command, text=True, cwd=folder, env=environment, **pipes)


def test_the_main_job_runs_and_a_folder_in_use_is_locked(tmp_path):
    run = tmp_path / "run"
    arguments = [option for option in TINY if option not in ("--export=none", "--no-report")]
    holder = start(TRAIN_AND_HOLD, "--output=run", *arguments, folder=tmp_path)
    lines = iter(holder.stdout.readline, "")
    assert "held\n" in lines, holder.communicate()[1]
    assert (run / "metrics.jsonl").read_bytes().endswith(b"1\r\n2\n")
    written = (run / LIST).read_text().split("\n")
    for name in ("config.yaml", "metrics.json", "quantized.safetensors", "model.safetensors"):
        assert name in written
        assert (run / name).stat().st_size > 0
    assert (run / "report.html").is_file()
    _, errors = start(HOLD, run, folder=tmp_path).communicate(timeout=200)
    assert (errors.count("\n"), "in use by another run" in errors) == (1, True)
    _, errors = holder.communicate("")
    assert "already holds a run" in errors
    assert errors.count("\n") == 1


def test_without_any_locks_one_warning_says_so_and_links_are_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    _, errors = start(HOLD, "run", "link", folder=tmp_path, locks=False).communicate()
    warning, refusal = errors.splitlines()
    assert "without locks; start no other run there" in warning
    assert "is a link, expected a folder" in refusal
    assert not list((tmp_path / "elsewhere").iterdir())
