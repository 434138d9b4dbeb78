"""Full and read-only disks and quotas: one line, exit code 2, and what stood before is intact."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hostile_files as make
import onnx
import pytest
import torch
from PIL import Image
from runs import SHORT
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.__main__ import main as evaluate
from zscgan_ext.export.__main__ import main as export
from zscgan_ext.run_folder.files import RunFolder
from zscgan_ext.run_folder.own_files import LIST
from zscgan_ext.run_folder.tensorboard_log import TensorboardLog
from zscgan_ext.run_folder.whole_file import PARTIAL, write_whole
from zscgan_ext.train import main as train

FAULTS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO)
OPERATIONS = ("open", "write", "sync", "rename")
CLASSIFIER = "--classifier=networks:small_residual"
TINY = [
    *(*SHORT, CLASSIFIER, "--image-size=8", "--batch-size=4"),
    *("--synthesis-steps=1", "--fine-tuning-steps=1", "--output=run"),
]
# Files of a run and which writing of them, in their order. The first ones are those of the instant
# student, which the fine-tuned one replaces.
WRITINGS = (
    *(("config.yaml", 1), ("quantized.safetensors", 1), ("instant.safetensors", 1)),
    *(("model.safetensors", 1), ("model.onnx", 1), ("export.json", 1)),
    *(("step-000001.png", 1), ("metrics.jsonl", 1), ("generator.safetensors", 1)),
    *(("quantized.safetensors", 2), ("generator.safetensors", 2)),
    *(("trace.json", 1), ("profile.txt", 1), ("metrics.json", 1), ("predictions.safetensors", 1)),
    *(("model.safetensors", 2), ("model.onnx", 2), ("export.json", 2), ("report.html", 1)),
)
INSTANT_IS_DELETED = WRITINGS.index(("generator.safetensors", 2))  # after it
EXPORTED = ("model.safetensors", "model.onnx", "export.json")
EXPORTED_ARE_DELETED = WRITINGS.index(("quantized.safetensors", 2))  # after it, until they follow
# What is written between steps, when some have been taken.
AFTER_STEPS = {*((name, 2) for name in EXPORTED), ("report.html", 1)}
# Options without which a run does not write these.
OPTIONS = {
    "model.onnx": "--export=safetensors,onnx",
    "trace.json": "--profile",
    "profile.txt": "--profile",
    "report.html": "--report",
}


class FaultyFile:
    """A file that takes half of what is written to it."""

    def __init__(self, stream, error: OSError) -> None:
        self.stream, self.error = stream, error

    def write(self, data: bytes) -> int:
        self.stream.write(data[: len(data) // 2])
        self.stream.flush()
        raise self.error

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()


@contextmanager
def faulty_disk(name: str, code: int, operation: str, first: int = 1):
    """Let one operation fail on every file of this name.

    Args:
        name: of the file.
        code: of the error.
        operation: one of `OPERATIONS`.
        first: writing of it, from 1, that fails.
    """
    error = OSError(code, os.strerror(code))
    opened, made, replaced = os.open, os.fdopen, os.replace
    concerned = (name, f".{name}{PARTIAL}")
    writings = 0

    def open_file(path, flags, *rest, **options):
        nonlocal writings
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(os.fsdecode(path)).name in concerned:
            writings += 1
            if operation == "open" and writings >= first:
                raise error
        return opened(path, flags, *rest, **options)

    def open_stream(descriptor, mode="r", *rest, **options):
        stream = made(descriptor, mode, *rest, **options)
        found = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        writes = mode[0] in "wa" and found in concerned and writings >= first
        return FaultyFile(stream, error) if writes and operation == "write" else stream

    def sync(descriptor):
        found = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        if found in concerned and writings >= first:
            raise error

    def replace(source, target, **folders):
        if Path(target).name == name and writings >= first:
            raise error
        replaced(source, target, **folders)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_file)
        patch.setattr(os, "fdopen", open_stream)
        if operation == "sync":
            patch.setattr(os, "fsync", sync)
        if operation == "rename":
            patch.setattr(os, "replace", replace)
        yield


def whole(file: Path) -> bool:
    """Return True if a file of a run holds all that such a file holds."""
    if file.suffix == ".safetensors":
        return bool(load_file(file))
    if file.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(file))
        return True
    if file.suffix == ".png":
        with Image.open(file) as image:
            return image.convert("RGB").size > (1, 1)
    if file.suffix == ".json":
        return bool(json.loads(file.read_text()))
    if file.suffix == ".jsonl":
        return all(json.loads(line) for line in file.read_text().splitlines())
    return file.read_bytes().endswith(b"\n")


def files_below(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, code, operation):
    file = tmp_path / "metrics.json"
    file.write_text("old")
    with (
        faulty_disk(file.name, code, operation),
        pytest.raises(InputError, match=f"metrics.json cannot be written .{os.strerror(code)}"),
    ):
        write_whole(file, b"new and longer")
    assert file.read_text() == "old"
    assert files_below(tmp_path) == [file]
    write_whole(file, b"new")
    assert file.read_text() == "new"


@pytest.mark.parametrize("operation", ["open", "write"])
@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
def test_the_log_keeps_whole_lines(tmp_path, code, operation):
    folder = RunFolder(tmp_path)
    folder.append_jsonl("metrics.jsonl", {"step": 1})
    with (
        faulty_disk("metrics.jsonl", code, operation),
        pytest.raises(InputError, match=f"cannot be written .{os.strerror(code)}"),
    ):
        folder.append_jsonl("metrics.jsonl", {"step": 2})
    folder.append_jsonl("metrics.jsonl", {"step": 3})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]


def events_of(folder: Path) -> dict[str, list[int]]:
    """Return the steps in a log for TensorBoard, as it reads them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [event.step for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return scalars | {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}


@pytest.mark.parametrize("operation", ["open", "write"])
@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
def test_the_log_for_tensorboard_keeps_whole_events(tmp_path, code, operation):
    log = TensorboardLog(RunFolder(tmp_path))
    log.scalars("synthesis", {"step": 1, "loss": 0.5})
    with (
        faulty_disk(log.name, code, operation),
        pytest.raises(InputError, match=f"cannot be written .{os.strerror(code)}"),
    ):
        log.scalars("synthesis", {"step": 2, "loss": 0.25})
    log.scalars("synthesis", {"step": 3, "loss": 0.125})
    assert events_of(tmp_path) == {"synthesis/loss": [1, 3]}


@contextmanager
def quota(size: int):
    """Let the system refuse to make any file larger than this, bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_system_itself_cuts_a_line_short(tmp_path):
    """No fault made up: the kernel takes a part of the line and refuses the rest."""
    folder = RunFolder(tmp_path)
    folder.write_file("metrics.jsonl", b"")  # its name is noted, for which the quota has no room
    with quota(40):
        folder.append_jsonl("metrics.jsonl", {"step": 1})
        with pytest.raises(InputError, match=r"metrics.jsonl cannot be written"):
            folder.append_jsonl("metrics.jsonl", {"step": 2, "stage": "synthesis" * 9})
        folder.append_jsonl("metrics.jsonl", {"step": 3})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_system_itself_refuses_a_large_file(tmp_path):
    folder = RunFolder(tmp_path)
    tensors = {"weight": torch.ones(100)}
    folder.save_tensors("generator.safetensors", tensors)
    with quota(1000), pytest.raises(InputError, match=r"cannot be written \(File too large"):
        folder.save_tensors("generator.safetensors", {"weight": torch.zeros(9999)})
    assert torch.equal(load_file(tmp_path / "generator.safetensors")["weight"], torch.ones(100))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tree of labelled images."""
    folder = tmp_path_factory.mktemp("images")
    make.tree_with(make.data(make.picture()))(folder)
    return folder


def files_before(index: int, options: set[str]) -> set[str]:
    """Return the names of the files that a run with these options holds before a writing."""
    deleted = {("instant.safetensors", 1)} if index > INSTANT_IS_DELETED else set()
    if index > EXPORTED_ARE_DELETED:
        deleted |= {(name, 1) for name in EXPORTED}
    kept = [each for each in WRITINGS[:index] if each not in deleted]
    return {name for name, _ in kept if OPTIONS.get(name) in {None, *options}} | {LIST}


@pytest.mark.parametrize(
    "index", range(len(WRITINGS)), ids=lambda index: "-".join(map(str, WRITINGS[index]))
)
def test_a_run_ends_in_one_line_with_whole_files(tmp_path, images, monkeypatch, capfd, index):
    monkeypatch.chdir(tmp_path)
    name, writing = WRITINGS[index]
    options = {OPTIONS[name]} if name in OPTIONS else set()
    operation = "write" if name == "metrics.jsonl" else OPERATIONS[index % len(OPERATIONS)]
    code = FAULTS[index % len(FAULTS)]
    with faulty_disk(name, code, operation, writing):
        assert train([*TINY, f"--evaluation-data={images}", *options]) == 2
    *others, line = capfd.readouterr().err.splitlines()
    assert not others or "--profile" in options  # torch's profiler writes there
    assert line.startswith("error: output: ")
    assert line.endswith(f"{name} cannot be written ({os.strerror(code)})")
    kept = files_below(tmp_path)
    created = {name} if name == "metrics.jsonl" else set()  # and left empty
    # What was learned is kept for --resume where the error comes between steps.
    names = sorted(file.name for file in kept if file.parent.name != "checkpoints")
    assert names == sorted(files_before(index, options) | created)
    writes_checkpoint = WRITINGS[index] in AFTER_STEPS
    assert any(file.parent.name == "checkpoints" for file in kept) == writes_checkpoint
    assert all(whole(file) for file in kept if file.name != LIST)
    if (name, writing) == ("quantized.safetensors", 2):
        run = tmp_path / "run"
        assert (run / name).read_bytes() == (run / "instant.safetensors").read_bytes()


def test_a_log_for_tensorboard_without_room_ends_the_run(tmp_path, monkeypatch, capfd):
    log_images = TensorboardLog.images

    steps = []

    def without_room(log: TensorboardLog, tag: str, grid: torch.Tensor, step: int) -> None:
        steps.append(step)
        with nullcontext() if len(steps) == 1 else quota(100):
            log_images(log, tag, grid, step)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TensorboardLog, "images", without_room)
    assert train([*TINY, "--tensorboard", "--synthesis-steps=4"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    (file,) = Path("run").glob("events.out.tfevents.*")
    assert line == f"error: output: {file} cannot be written (File too large)"
    logged = events_of(Path("run"))
    assert steps == [1, 4]
    assert logged["synthesis/loss"] == [1]
    assert logged["samples"] == [1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    here = os.getcwd()
    os.chdir(folder)
    assert train(TINY) == 0
    os.chdir(here)
    return folder / "run"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["model.safetensors", "export.json"])
def test_exporting_again_keeps_what_was_exported(tmp_path, finished, capfd, name, operation):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with faulty_disk(name, errno.ENOSPC, operation):
        assert export([str(run), CLASSIFIER, "--formats=safetensors"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "cannot be written (No space left on device)" in line
    names = sorted(file.relative_to(run) for file in files_below(run))
    assert names == sorted(file.relative_to(finished) for file in files_below(finished))
    assert all(
        (run / file).read_bytes() == (finished / file).read_bytes()
        for file in names
        if file.name != "model.safetensors" or name == file.name
    )


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
def test_an_evaluation_is_written_whole_or_not_at_all(tmp_path, images, capfd, code, operation):
    make.onnx_model()(tmp_path / "m.onnx")
    file = tmp_path / "evaluation.json"
    file.write_text("old")
    with faulty_disk(file.name, code, operation):
        assert evaluate([str(tmp_path / "m.onnx"), f"--data={images}", f"--json={file}"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"error: output: {file} cannot be written ({os.strerror(code)})"
    assert file.read_text() == "old"
    assert {kept.name for kept in files_below(tmp_path)} == {"m.onnx", "evaluation.json"}


@pytest.mark.parametrize("program", ["export", "profile"])
def test_no_room_for_temporary_files(tmp_path, finished, monkeypatch, capfd, program):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    code = (
        export([str(finished), CLASSIFIER]) if program == "export" else train([*TINY, "--profile"])
    )
    assert code == 2
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith("error: output: ")
    assert line.endswith("cannot be written (No space left on device)")


@pytest.mark.parametrize("program", [("evaluate", "m.onnx", "--data", "tree"), ("info",)])
@pytest.mark.parametrize("output", ["/dev/full", "closed pipe"])
def test_an_output_that_takes_nothing(tmp_path, output, program):
    make.onnx_model()(tmp_path / "m.onnx")
    make.tree_with(make.data(make.picture()))(tmp_path / "tree")
    command = [sys.executable, "-m", f"zscgan_ext.{program[0]}", *program[1:]]
    if output == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(output, os.O_WRONLY)
    done = subprocess.run(
        command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    lost = "the program that reads it has ended, what was left to print is lost"
    reason = lost if output == "closed pipe" else os.strerror(errno.ENOSPC)
    assert (done.returncode, done.stderr) == (2, f"error: standard output: {reason}\n")
