"""Messages say what is wrong and what to do, and nothing from a file steers a terminal."""

import os
import re
import sys
import time
from pathlib import Path

import hostile_files as make
import networks
import pytest
import torch
from networks import RGB8, small_residual
from runs import OWN, TINY
from worker_processes import free_port

import zscgan_ext
from zscgan_ext import distributed
from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.evaluation import class_table, open_data
from zscgan_ext.export.__main__ import main as export
from zscgan_ext.images.datasets import open_labelled
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.measures import ClassResult
from zscgan_ext.program import program
from zscgan_ext.report.charts import tick_labels
from zscgan_ext.report.page import escaped
from zscgan_ext.train import main

STEERING = "\x1b[2J\x1b]0;x\x07\u202egnp.\u2066\x9b\x7f\r"
TREE = ("cat", "dog", "owl")


def line_of(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


# ---- terminals and pages -------------------------------------------------------------------------


def is_harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_whatever_a_program_prints_steers_no_terminal(capsys):
    @program
    def printing(_=None) -> int:
        print(f"a{STEERING}b")
        print(f"x{STEERING}y", file=sys.stderr)
        raise InputError(f"c{STEERING}d")

    assert printing() == 2
    output = capsys.readouterr()
    assert is_harmless(output.out + output.err.replace("\r", ""))
    assert output.out.startswith("a\\x1b[2J")
    assert output.out.endswith("b\n")
    assert output.err.startswith("x\\x1b[2J")
    assert "\nerror: c\\x1b[2J" in output.err


def test_names_of_classes_add_no_lines(capsys):
    table = class_table([ClassResult(0, 1, 100.0, None)], ("cat\nwarning: x",))
    assert len(table.splitlines()) == 2
    assert "cat\\nwarning: x" in table


def test_names_in_a_page_reorder_nothing():
    assert escaped("cat\u202egnp") == "cat\\u202egnp"
    assert tick_labels(["a\x1b", "b\u2066"]) == ["a\\x1b", "b\\u2066"]


# ---- images --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in TREE:
        folder = tmp_path / "tree" / name / "inner"
        folder.mkdir(parents=True)
        make.data(make.picture())(folder / "x.png")
    return tmp_path / "tree"


@pytest.mark.parametrize("unreadable", ["tree", "owl", "inner"])
def test_an_unreadable_folder_of_images_is_an_error(tree, monkeypatch, unreadable):
    """Root may read everything, so the refusal is made up."""
    scandir, listdir = os.scandir, os.listdir

    def refusing(original):
        def called(path="."):
            if os.fspath(path).endswith(unreadable):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return original(path)

        return called

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    with pytest.raises(InputError, match=f"{unreadable}: cannot be read .Permission denied"):
        open_labelled(str(tree), "test", RGB8, 3)


@pytest.mark.parametrize("place", ["eel", "owl/more", "owl/inner/y.png"])
def test_a_link_that_leads_nowhere_is_an_error(tree, place):
    """A class that is passed over would give all after it other labels."""
    (tree / place).symlink_to("gone")
    (tree / "owl" / ".#lock").symlink_to("editor")
    with pytest.raises(InputError, match=f"{place}: is a link that leads nowhere"):
        open_labelled(str(tree), "test", RGB8, 3)
    (tree / place).unlink()
    assert len(open_labelled(str(tree), "test", RGB8, 3)) == 3


def test_too_many_class_folders_are_counted(tree):
    with pytest.raises(InputError, match=r"tree: holds 3 class folders, the classifier has 2 clas"):
        open_labelled(str(tree), "test", RGB8, 2)


@pytest.mark.parametrize("size", [32, 14])
def test_images_that_nobody_named_are_not_blamed(tmp_path, capsys, size):
    assert main([f"--image-size={size}", f"--output={tmp_path / 'run'}"]) == 2
    line = line_of(capsys)
    assert line.startswith(
        "error: no labelled images were named, and those that come with resnet20"
    )
    assert "name others" in line
    names = tuple(map(str, range(10)))
    with pytest.raises(InputError, match=r"^no labelled images were named"):
        open_data(None, "resnet20", Preprocessing(1, size, (0.5,), (0.5,)), names)


# ---- numbers, weights, memory --------------------------------------------------------------------


def test_a_classifier_that_gives_infinities_is_blamed_itself(capsys):
    model = small_residual()
    model.stem.weight.fill_(3e38)
    model.stem_bn.running_var.fill_(1e-30)
    classifier = zscgan_ext.load_classifier(model, image_size=8)
    settings = {"synthesis_steps": 3, "batch_size": 8, "latent_dim": 8, "device": "cpu"}
    with pytest.raises(InputError) as raised:
        zscgan_ext.train_generator(classifier, **settings)
    message = str(raised.value)
    assert message.startswith("synthesis: step 1: the output of ")
    assert "of the classifier is not finite; the classifier itself turns images into it" in message
    assert "learning-rate" not in message


def test_weights_that_changed_since_a_checkpoint_are_told(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    options = ["--checkpoint-every=3", "--stop-after=synthesis", f"--output={run}"]
    assert main([*TINY, *options]) == 0
    original = networks.small_gray

    def other(num_classes=10):
        model = original(num_classes)
        model[0].weight.mul_(1.5)
        return model

    monkeypatch.setattr(networks, "small_gray", other)
    capsys.readouterr()
    assert main([OWN, f"--resume={run}"]) == 2
    assert line_of(capsys) == (
        "error: weights of the classifier: expected those that the checkpoint to resume was "
        "written with; give those again, or start a new run with another --output"
    )


@pytest.mark.parametrize(("called", "hint"), [("train", "--batch-size or --image-size"), ("x", "")])
def test_the_advice_where_memory_ends_fits_the_program(monkeypatch, tmp_path, capsys, called, hint):
    def fails(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("zscgan_ext.stages.preparation.classifier_of", fails)
    monkeypatch.setattr(sys.modules["zscgan_ext.export.exporter"], "export_run", fails)
    arguments = [f"--output={tmp_path / 'run'}"] if called == "train" else ["run"]
    assert (main if called == "train" else export)(arguments) == 2
    line = line_of(capsys)
    assert "memory is used up" in line
    assert hint in line
    assert called == "train" or "--batch-size" not in line


# ---- places among processes ----------------------------------------------------------------------

PLACE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
WRONG_PLACES = {
    "no address": ({"MASTER_ADDR": None}, "RANK is set as by torchrun, but MASTER_ADDR is not"),
    "no port": ({"MASTER_PORT": None}, "RANK is set as by torchrun, but MASTER_PORT is not"),
    "beyond": ({"RANK": "2"}, "RANK: 2 in the environment, where WORLD_SIZE is 2"),
    "far beyond": ({"RANK": "7"}, "RANK: 7 in the environment, where WORLD_SIZE is 2"),
    "below": ({"RANK": "-1"}, "RANK: '-1' in the environment, expected a number"),
    "text": ({"RANK": "x"}, "RANK: 'x' in the environment, expected a number"),
    "empty": ({"RANK": ""}, "RANK: '' in the environment, expected a number"),
    "size as text": ({"WORLD_SIZE": "two"}, "WORLD_SIZE: 'two' in the environment"),
    "nobody": ({"WORLD_SIZE": "0"}, "RANK: 0 in the environment, where WORLD_SIZE is 0"),
    "own place": ({"LOCAL_RANK": "x"}, "LOCAL_RANK: 'x' in the environment"),
    "restarts": ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT: 'x' in"),
    "port": ({"MASTER_PORT": "99999"}, "MASTER_PORT: 99999 in the environment"),
    "nobody came": ({"MASTER_PORT": "free"}, ".*2 processes, which did not all meet at 127.0.0.1:"),
    "nobody is there": (
        {"RANK": "1", "MASTER_PORT": "free"},
        ".*2 processes, which did not all meet at 127.0.0.1:",
    ),
    "nowhere": (
        {"MASTER_ADDR": "nowhere.invalid"},
        ".*which did not all meet at nowhere.invalid:1",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_PLACES.values(), ids=WRONG_PLACES)
def test_a_place_that_cannot_be_is_told_within_seconds(
    monkeypatch, tmp_path, capfd, changes, message
):
    place = {**PLACE, **changes}
    if place["MASTER_PORT"] == "free":
        place["MASTER_PORT"] = str(free_port())
    for name, value in place.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(distributed.Control, "store", None)
    monkeypatch.setattr(distributed.Control, "is_alone", False)
    began = time.monotonic()
    assert main([*TINY, f"--output={tmp_path / 'run'}"]) == 2
    assert time.monotonic() - began < 60
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(rf"(process \d: )?error: {message}", line), line
    assert "start all of them by torchrun, or unset RANK and WORLD_SIZE" in line
    assert not (tmp_path / "run").exists()
