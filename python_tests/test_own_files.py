"""Runs touch nothing but the files that runs wrote, and have their folder to themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import OWN, TINY, let_go_of_folders

from zscgan_ext.errors import InputError
from zscgan_ext.export.__main__ import main as export
from zscgan_ext.report.__main__ import main as report
from zscgan_ext.run_folder.files import NAMES, RunFolder
from zscgan_ext.run_folder.own_files import HEADER, LIST, OwnFiles
from zscgan_ext.run_folder.whole_file import PARTIAL, write_whole
from zscgan_ext.train import main as train

CHECKPOINT = "checkpoints/000007-0123456789abcdef.safetensors"
SAMPLE = "samples/step-000004.png"
SHORT = [*TINY, "--stop-after=synthesis", "--checkpoint-every=2"]


@pytest.fixture(autouse=True)
def no_folder_in_use():
    """Let go of folders that a test before has left open."""
    yield
    let_go_of_folders()


def content(folder: Path) -> dict[str, str | bytes]:
    """Return all files and links below a folder with what they hold."""
    found: dict[str, str | bytes] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def place(file: Path, text: str = "mine") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def written(tmp_path) -> Path:
    """The folder of a run that wrote a file of each kind."""
    folder = tmp_path / "run"
    run = RunFolder(folder)
    run.write_text("config.yaml", "x")
    run.append_jsonl("metrics.jsonl", {})
    run.append("events.out.tfevents.17.host.3", b"x")
    run.save_tensors("generator.safetensors", {"w": torch.zeros(1)})
    run.save_image_grid(SAMPLE, torch.zeros(1, 1, 1, 4, 4), ["a"])
    run.write_file(CHECKPOINT, b"x")
    run.close()
    return folder


OTHERS = (
    *("samples/cat.png", "samples/step-4.png", "checkpoints/best.safetensors", "notes.txt"),
    *(".notes.txt.partial", "samples/.cat.png.partial", "checkpoints/.best.safetensors.partial"),
    *("checkpoints/000001-mine.safetensors", "teacher.safetensors", "events.out.tfevents.1.mine.2"),
)


def test_overwriting_deletes_all_that_a_run_wrote_and_nothing_else(written):
    for name in OTHERS:
        place(written / name)
    for name in ("config.yaml", SAMPLE, CHECKPOINT):  # what a killed run leaves
        file = written / name
        file.with_name(f".{file.name}{PARTIAL}").write_text("half")
    RunFolder(written, overwrite=True)
    assert content(written) == {**dict.fromkeys(OTHERS, b"mine"), LIST: b""}


def test_a_resumed_run_deletes_nothing_though_it_had_overwritten_another(written):
    """The settings of a run that was started with --overwrite say so when it is resumed."""
    before = content(written)
    RunFolder(written, overwrite=True, resume=True)
    assert content(written) == before


def test_a_resumed_run_keeps_its_checkpoints_until_it_has_another(tmp_path, monkeypatch):
    output = f"--output={tmp_path / 'run'}"
    assert train([*SHORT, output]) == 0
    assert train([*SHORT, output, "--overwrite"]) == 0
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert before

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("zscgan_ext.stages.preparation.resume_results", killed)
    assert train([OWN, f"--resume={tmp_path / 'run'}"]) == 130
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("name", [*NAMES, SAMPLE, CHECKPOINT])
def test_a_file_that_no_run_wrote_is_kept(tmp_path, name):
    place(tmp_path / name)
    with pytest.raises(InputError, match="already holds"):
        RunFolder(tmp_path)
    with pytest.raises(InputError, match=f"holds {name}, which {LIST} does not list"):
        RunFolder(tmp_path, overwrite=True)
    assert {k: v for k, v in content(tmp_path).items() if k != LIST} == {name: b"mine"}


def test_one_such_file_keeps_all_of_the_run(written):
    place(written / "model.onnx")
    before = content(written)
    with pytest.raises(InputError, match=r"holds model\.onnx, which"):
        RunFolder(written, overwrite=True)
    assert content(written) == before


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", SAMPLE, CHECKPOINT])
@pytest.mark.parametrize("kind", ["link", "link to nowhere", "folder", "pipe"])
def test_something_else_in_the_place_of_one_file_keeps_all_of_the_run(
    tmp_path, written, name, kind
):
    file, elsewhere = written / name, tmp_path / "elsewhere"
    place(elsewhere)
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(elsewhere if kind == "link" else "nowhere")
    before = content(written)
    kinds = {"folder": "folder", "pipe": "device, pipe or socket"}
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match=f"is a {kinds.get(kind, 'link')}, expected a file"):
            RunFolder(written, **options)
    assert content(written) == before
    assert elsewhere.read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoints", "samples"])
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_folders_that_are_links_are_refused(tmp_path, capsys, name, options):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    for file in ("best.safetensors", Path(CHECKPOINT).name, ".x.partial", "step-000004.png"):
        place(elsewhere / file)
    run.mkdir()
    (run / name).symlink_to(elsewhere)
    before = content(tmp_path)
    assert train([*SHORT, f"--output={run}", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / name} is a link, expected a folder" in line
    after = content(tmp_path)
    after.pop(f"run/{LIST}", None)
    assert after == before


def test_a_run_whose_checkpoints_became_a_link_is_not_resumed(tmp_path, capsys):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert train([*SHORT, f"--output={run}"]) == 0
    (run / "checkpoints").rename(elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    before = content(tmp_path)
    capsys.readouterr()
    assert train([OWN, f"--resume={run}"]) == 2
    assert "checkpoints is a link, expected a folder" in capsys.readouterr().err
    assert content(tmp_path) == before


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_the_folder_itself_is_no_link(tmp_path, written, options):
    (tmp_path / "latest").symlink_to(written)
    with pytest.raises(InputError, match="latest is a link, expected a folder; give the folder"):
        RunFolder(tmp_path / "latest", **options)


@pytest.mark.parametrize("inner", ["samples", "checkpoints"])
def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path, inner):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = RunFolder(tmp_path / "run")
    (run.path / inner).symlink_to(elsewhere)
    with pytest.raises(InputError, match="is a link, expected a folder"):
        run.write_file({"samples": SAMPLE, "checkpoints": CHECKPOINT}[inner], b"")


def test_a_log_that_becomes_a_link_or_has_two_names_does_not_grow(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.append_jsonl("metrics.jsonl", {})
    os.link(run.path / "metrics.jsonl", tmp_path / "second")
    with pytest.raises(InputError, match="it has a second name"):
        run.append_jsonl("metrics.jsonl", {})
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to("../second")
    with pytest.raises(InputError, match="is a link"):
        run.append_jsonl("metrics.jsonl", {})
    assert (tmp_path / "second").read_text() == "{}\n"


FORGED = (
    *("../outside", "samples/../../outside", "/etc/hostname", "notes.txt", "samples/cat.png"),
    *("checkpoints/best.safetensors", "", ".", "samples", LIST, ".."),
)


def test_a_list_that_was_changed_has_nothing_else_deleted(tmp_path, written):
    place(tmp_path / "outside")
    for name in ("notes.txt", "samples/cat.png", "checkpoints/best.safetensors"):
        place(written / name)
    with (written / LIST).open("a") as stream:
        stream.write("\n".join([*FORGED, str(tmp_path / "outside")]) + "\n")
    RunFolder(written, overwrite=True)
    assert content(tmp_path) == {
        "outside": b"mine",
        f"run/{LIST}": b"",
        **{f"run/{n}": b"mine" for n in FORGED if n in OTHERS},
    }


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "other text", "second name", "huge"])
def test_a_list_that_is_something_else_is_refused(tmp_path, kind):
    place(tmp_path / "elsewhere")
    run = tmp_path / "run"
    run.mkdir()
    file = run / LIST
    if kind == "link":
        file.symlink_to("../elsewhere")
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "second name":
        os.link(tmp_path / "elsewhere", file)
    elif kind == "huge":
        file.write_text(HEADER)
        os.truncate(file, 1 << 40)
    else:
        file.write_text("mine")
    with pytest.raises(InputError, match=f"{LIST} (is a link|cannot be written)"):
        RunFolder(run)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert kind != "other text" or file.read_text() == "mine"


def test_a_half_written_line_of_the_list_names_nothing(written):
    place(written / "report.html")
    with (written / LIST).open("a") as stream:
        stream.write("report.html")
    with pytest.raises(InputError, match=r"holds report\.html, which"):
        RunFolder(written, overwrite=True)
    (written / "report.html").unlink()
    run = RunFolder(written, resume=True)
    run.write_text("trace.json", "{}")
    assert "trace.json" in (written / LIST).read_text().splitlines()


def test_old_checkpoints_of_others_are_kept(tmp_path):
    run = tmp_path / "run"
    assert train([*SHORT, f"--output={run}", "--keep-checkpoints=1"]) == 0
    mine = run / "checkpoints" / "000001-0123456789abcdef.safetensors"
    place(mine)
    assert train([OWN, f"--resume={run}", "--checkpoint-every=1"]) == 0
    assert mine.read_text() == "mine"


def test_a_run_without_a_list_goes_on_and_gets_one(tmp_path):
    run = tmp_path / "run"
    assert train([*SHORT, f"--output={run}"]) == 0
    before = content(run)
    (run / LIST).unlink()
    assert train([OWN, f"--resume={run}"]) == 0
    assert set((run / LIST).read_text().splitlines()[1:]) >= set(before) - {LIST}
    assert train([*SHORT, f"--output={run}", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("program", "name"), [(export, "model.safetensors"), (report, "report.html")]
)
def test_export_and_report_keep_files_of_others(tmp_path, capsys, program, name):
    run = tmp_path / "run"
    assert train([*TINY, f"--output={run}"]) == 0
    place(run / name)
    formats = ["--formats=safetensors"] if program is export else []
    capsys.readouterr()
    assert program([str(run), OWN, *formats]) == 2
    assert f"holds {name}, which {LIST} does not list" in capsys.readouterr().err
    assert (run / name).read_text() == "mine"
    (run / name).unlink()
    assert program([str(run), OWN, *formats]) == 0
    assert program([str(run), OWN, *formats]) == 0  # its own it replaces


def test_partial_files_of_others_are_neither_used_nor_deleted(tmp_path):
    place(tmp_path / f".x.json{PARTIAL}")
    (tmp_path / f".x.json.2{PARTIAL}").symlink_to("elsewhere")
    write_whole(tmp_path / "x.json", b"new")
    assert content(tmp_path) == {
        f".x.json{PARTIAL}": b"mine",
        f".x.json.2{PARTIAL}": "elsewhere",
        "x.json": b"new",
    }


# ---- one process at a time -----------------------------------------------------------------------

HOLDING = """
import sys, pathlib
from zscgan_ext.run_folder.files import own_files
own = own_files(pathlib.Path(sys.argv[1]))
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """The folder of a finished run, which another process holds."""
    run = tmp_path / "run"
    assert train([*TINY, f"--output={run}"]) == 0
    command = [sys.executable, "-c", HOLDING, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"holds\n"
        yield run
        process.kill()


def test_a_folder_in_use_is_left_alone(held, capsys):
    before = content(held)
    ways = [
        (train, [*SHORT, f"--output={held}", "--overwrite"]),
        (train, [OWN, f"--resume={held}"]),
        (export, [str(held), OWN, "--formats=safetensors"]),
        (report, [str(held), OWN]),
    ]
    capsys.readouterr()
    for program, arguments in ways:
        assert program(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: output: {held} is in use by another run; wait for its end")
    assert content(held) == before


def test_a_killed_process_holds_no_folder(tmp_path):
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"holds\n"
        with pytest.raises(InputError, match="is in use by another run"):
            RunFolder(tmp_path / "run")
        process.kill()
    RunFolder(tmp_path / "run")


def test_a_run_lets_go_of_its_folder(tmp_path):
    run = tmp_path / "run"
    assert train([*SHORT, f"--output={run}"]) == 0
    assert train([*SHORT, f"--output={run}"]) == 2  # it holds a run
    assert not OwnFiles.in_use


# ---- a folder that goes away ---------------------------------------------------------------------


@pytest.mark.parametrize("change", ["deleted", "moved", "replaced", "list deleted"])
def test_a_folder_that_is_gone_is_not_made_again(tmp_path, change):
    run = RunFolder(tmp_path / "run")
    run.write_text("config.yaml", "x")
    if change == "list deleted":
        (run.path / LIST).unlink()
    else:
        run.path.rename(tmp_path / "away")
    if change == "replaced":
        run.path.mkdir()
    before = content(tmp_path)
    writes = [
        lambda: run.write_text("config.yaml", "y"),
        lambda: run.append_jsonl("metrics.jsonl", {}),
        lambda: run.write_file(CHECKPOINT, b""),
        lambda: run.delete(["config.yaml"]),
    ]
    for write in writes:
        with pytest.raises(InputError, match=r"meanwhile; if it was moved, --resume its new place"):
            write()
    assert content(tmp_path) == before
