"""What changes while a run reads or writes: links put in place, other runs, other processes."""

import errno
import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import OWN, TINY, let_go_of_folders

from zscgan_ext import distributed
from zscgan_ext.config.command_line import config_to_yaml, parse_config
from zscgan_ext.errors import InputError
from zscgan_ext.export import exporter
from zscgan_ext.export.exporter import export_run
from zscgan_ext.images.datasets import LabelledImages
from zscgan_ext.report import page
from zscgan_ext.run_folder import files, finished_run, own_files
from zscgan_ext.run_folder.files import RunFolder
from zscgan_ext.run_folder.own_files import LIST
from zscgan_ext.stages import student_stages
from zscgan_ext.stages.preparation import WEIGHTS, check_alike
from zscgan_ext.train import main as train

CHECKPOINT = "checkpoints/000007-0123456789abcdef.safetensors"
SAMPLE = "samples/step-000004.png"


@pytest.fixture(autouse=True)
def no_folder_in_use():
    """Let go of folders that a test before has left open."""
    yield
    let_go_of_folders()


@pytest.fixture
def run(tmp_path):
    """A run that has written some files, beside a folder of somebody else with the same names."""
    for place in ("run", "victim"):
        for name in ("config.yaml", "metrics.jsonl", SAMPLE, CHECKPOINT):
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_text("mine")
    names = "".join(f"{n}\n" for n in ("config.yaml", "metrics.jsonl", SAMPLE, CHECKPOINT))
    (tmp_path / "run" / LIST).write_text(own_files.HEADER + names)
    return RunFolder(tmp_path / "run", resume=True)


CHANGES = {
    "write": lambda run, name: run.write_file(name, b"new"),
    "append": lambda run, name: run.append(name, b"new"),
    "delete": lambda run, name: run.delete([name]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["config.yaml", SAMPLE, CHECKPOINT])
def test_a_link_put_in_place_behind_the_check_leads_nowhere(
    run, tmp_path, monkeypatch, name, change
):
    """As soon as a place was checked, somebody who may write there puts a link into it."""
    inner = Path("run", name).parent
    check = own_files.check_place

    def checked_and_swapped(folder, checked):
        check(folder, checked)
        if not (tmp_path / inner).is_symlink():
            (tmp_path / inner).rename(tmp_path / "away")
            (tmp_path / inner).symlink_to(tmp_path / "victim" / inner.relative_to("run"))

    monkeypatch.setattr(own_files, "check_place", checked_and_swapped)
    try:
        CHANGES[change](run, name)
    except InputError as error:
        assert "cannot be written" in str(error)  # noqa: PT017
    assert (tmp_path / inner).is_symlink()
    found = [path for path in (tmp_path / "victim").rglob("*") if path.is_file()]
    assert len(found) == 4
    assert {path.read_text() for path in found} == {"mine"}


def is_locked(folder):
    with open(folder / LIST, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("program", ["export", "report"])
def test_no_other_run_begins_while_a_run_is_exported_or_reported(tmp_path, monkeypatch, program):
    """What is written at the end would otherwise be of the run before."""
    found = []

    def opened(*_):
        found.append(is_locked(tmp_path))
        raise InputError("seen")

    for name in ("config.yaml", "quantized.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.setattr(exporter, "open_run", opened)
    monkeypatch.setattr(page, "open_run", opened)
    write = {
        "export": lambda: export_run(tmp_path, ["safetensors"]),
        "report": lambda: page.write_report(tmp_path),
    }
    with pytest.raises(InputError, match="seen"):
        write[program]()
    assert found == [True]
    assert not is_locked(tmp_path)


def test_a_folder_of_no_run_is_left_as_it_is(tmp_path):
    for write in (
        lambda: export_run(tmp_path, ["safetensors"]),
        lambda: page.write_report(tmp_path),
    ):
        with pytest.raises(InputError, match=r"it lacks config\.yaml"):
            write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.yaml", "quantized.safetensors"])
def test_a_run_that_is_written_anew_while_it_is_read_is_refused(tmp_path, monkeypatch, name):
    for each in ("config.yaml", "quantized.safetensors"):
        (tmp_path / each).write_text("x")

    def read(folder, _):
        (tmp_path / "new").write_text("x")
        (tmp_path / "new").replace(folder / name)

    monkeypatch.setattr(finished_run, "read_run", read)
    with pytest.raises(InputError, match="was written anew while it was read; try again"):
        finished_run.open_run(tmp_path)


@pytest.mark.parametrize("other", ["--seed=5", "--bits=w8a8", "--fine-tuning-steps=9"])
def test_a_run_without_a_checkpoint_resumes_with_its_settings_only(tmp_path, capsys, other):
    """Its results would otherwise be those of two runs until it comes to its end."""
    text = config_to_yaml(parse_config(TINY))
    (tmp_path / "config.yaml").write_text(text)
    assert train([OWN, f"--resume={tmp_path}", other]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "as the run to resume has, got" in line
    assert (tmp_path / "config.yaml").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


IMAGES = LabelledImages(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (WEIGHTS, "other"),
        ("seed", "1"),
        ("version of torch", "0"),
        ("evaluation_data", "none"),
        ("checkpoint to resume", "none"),
    ],
)
def test_processes_that_compute_something_else_are_told_apart(monkeypatch, name, value):
    """One process with another file of the classifier gave results without a word."""
    facts = {WEIGHTS: "these", "seed": "0"}
    monkeypatch.setattr(distributed, "all_gather", lambda own: [own, own])
    check_alike(facts, IMAGES, None, {"steps": 3})
    monkeypatch.setattr(distributed, "all_gather", lambda own: [own, {**own, name: value}])
    with pytest.raises(InputError, match=f"^{name}: process 0 has .*, process 1 has {value}"):
        check_alike(facts, IMAGES, None, {"steps": 3})


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    RunFolder(tmp_path / "run").close()
    assert "without locks; start no other run there" in capsys.readouterr().err


def code_of_a_forked_process(folder):
    """What a process exits with that opens a folder: 7 where it is in use."""
    process = os.fork()
    if process == 0:
        try:
            RunFolder(folder, resume=True)
        except InputError:
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_forked_process_does_not_share_the_folder(tmp_path):
    run = RunFolder(tmp_path)
    assert code_of_a_forked_process(tmp_path) == 7
    run.close()


@pytest.mark.parametrize("closes", [True, False])
def test_a_forked_process_neither_frees_the_folder_nor_keeps_it(tmp_path, closes):
    run = RunFolder(tmp_path)
    here, there = os.pipe()
    process = os.fork()
    if process == 0:
        if closes:
            run.close()
        os.write(there, b"closed")
        signal.pause()
    os.read(here, 6)
    held = code_of_a_forked_process(tmp_path)
    run.close()
    free = code_of_a_forked_process(tmp_path)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert (held, free) == (7, 0)


def test_in_a_sticky_folder_files_of_others_are_found_before_any_is_deleted(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    run.own.check_deletable(["config.yaml"])
    (tmp_path / "run").chmod(0o1777)
    with pytest.raises(InputError, match="cannot be deleted"):
        run.own.delete_all()
    assert (tmp_path / "run" / "config.yaml").exists()
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_a_folder_deep_in_others_gives_one_line(tmp_path):
    with pytest.raises(InputError, match=r"too deep|too long"):
        files.own_files(tmp_path / ("a/" * 1900))


@pytest.mark.parametrize("is_changed", [False, True])
def test_pictures_that_are_changed_while_a_run_goes_on_are_told(
    tmp_path, monkeypatch, capsys, is_changed
):
    files = [tmp_path / "data" / f"{label}" / "x.png" for label in range(10)]
    for file in files:
        file.parent.mkdir(parents=True)
        Image.new("L", (28, 28), 9).save(file)
    original = student_stages.evaluate

    def changing(*arguments):
        original(*arguments)
        if is_changed:
            Image.new("L", (28, 28), 200).save(files[3])

    monkeypatch.setattr("zscgan_ext.stages.sequence.evaluate", changing)
    arguments = [*TINY, "--preset=instant", "--synthesis-steps=1000", "--fine-tuning-steps=0"]
    arguments += [f"--evaluation-data={tmp_path / 'data'}", f"--output={tmp_path / 'run'}"]
    assert train(arguments) == 0, capsys.readouterr().err
    warnings = json.loads((tmp_path / "run" / "metrics.json").read_text())["warnings"]
    told = [text for text in warnings if "was changed while the run went on" in text]
    assert len(told) == is_changed
    assert not told or told[0].startswith(f"{files[3]}: ")
