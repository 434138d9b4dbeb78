"""Finished runs whose settings, weights or files were exchanged afterwards: none is taken."""

import json
import shutil
from pathlib import Path

import networks
import pytest
import torch
import yaml
from networks import small_gray
from runs import OWN, TINY, write_fashion_mnist
from safetensors.torch import load_file, save_file

from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.__main__ import main as evaluate
from zscgan_ext.export.__main__ import main as export
from zscgan_ext.generate.__main__ import main as generate
from zscgan_ext.report.__main__ import main as report
from zscgan_ext.run_folder.finished_run import open_run
from zscgan_ext.run_folder.made_with import are_same_answers
from zscgan_ext.train import main as train

NAME = OWN.partition("=")[2]
PROGRAMS = {
    "evaluate": lambda *more: evaluate(["run", OWN, "--data", "images", *more]),
    "evaluate a file": lambda: evaluate(["run/model.safetensors", OWN, "--data", "images"]),
    "report": lambda: report(["run", OWN]),
    "export": lambda: export(["run", OWN, "--formats", "safetensors"]),
}
# Settings that decide the student or its numbers, each with another value.
EDITS = {
    **{"bits": "w8a8", "layer_bits": ["0=w8"], "keep_float": ["0"], "scheme": "paper"},
    **{"mean": [0.4], "std": [0.3], "seed": 7, "rounding": "nearest", "mirror": False},
    **{"output_index": 0, "evaluation_data": "others", "calibration_data": "others"},
    **{"classifier": "networks:another", "synthesis_steps": 9, "diversity_weight": 3.5},
}


def write_weights(seed):
    model = small_gray()
    with torch.no_grad():
        model[0].weight.mul_(1 + seed)
    save_file(model.state_dict(), "weights.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two finished runs of one classifier."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
        write_fashion_mnist(Path("images"), count=20)
        write_weights(0)
        options = [*TINY, "--evaluation-data=images", "--weights=weights.safetensors"]
        assert train([*options, "--export=safetensors", "--output=run"]) == 0
        assert train([*options, "--seed=1", "--output=other"]) == 0
    return folder


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """A copy of both, in the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def edit(**changes):
    config = Path("run", "config.yaml")
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | changes))


def contents(folder="run"):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}


def without_note():
    """Make the run one of an earlier version."""
    for name in ("quantized", "predictions"):
        save_file(load_file(f"run/{name}.safetensors"), f"run/{name}.safetensors")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_names_edited_settings(here, capsys, program):
    edit(mean=[0.4], seed=7, mirror=False)
    assert PROGRAMS[program]() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config: run/config.yaml was changed after its run")
    for told in ("mean is (0.4,), and was (0.5,)", "seed is 7, and was 0", "mirror is False"):
        assert told in line


def test_every_setting_that_decides_is_compared(here):
    original = Path("run", "config.yaml").read_text()
    for name, value in EDITS.items():
        edit(**{name: value})
        with pytest.raises(InputError, match=f"made with other settings .*{name} is "):
            open_run(Path("run"), NAME)
        Path("run", "config.yaml").write_text(original)
    edit(log_interval=9, device="auto", export="onnx", input="uint8")
    assert open_run(Path("run"), NAME).config.input == "uint8"


def test_other_weights_under_the_same_name_are_refused(here, capsys):
    Path("moved.safetensors").write_bytes(Path("weights.safetensors").read_bytes())
    write_weights(1)
    before = contents()
    for program in PROGRAMS.values():
        assert program() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"weights of the classifier: those of {NAME} are others than the run" in line
    assert train([OWN, "--resume=run"]) == 2  # of which no checkpoint is left
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected those that the run to resume was written with" in line
    assert contents() == before
    edit(weights="moved.safetensors")
    assert open_run(Path("run"), NAME).config.weights == Path("moved.safetensors")


@pytest.mark.parametrize(
    "name", ["generator.safetensors", "metrics.json", "predictions.safetensors"]
)
def test_files_of_another_run_are_refused(here, capsys, name):
    shutil.copyfile(f"other/{name}", f"run/{name}")
    assert PROGRAMS["report"]() == 2
    assert f"run/{name}: is of another run than the quantized" in capsys.readouterr().err


def test_a_generator_of_another_run_generates_nothing(here, capsys):
    assert generate(["run", "--count=3"]) == 0
    shutil.copyfile("other/generator.safetensors", "run/generator.safetensors")
    assert generate(["run", "--count=3", "--out=images2"]) == 2
    assert "generator.safetensors: is of another run" in capsys.readouterr().err
    assert not Path("images2").exists()


def test_a_file_of_another_run_is_not_measured_beside_this_classifier(here, capsys):
    """Its images are normalized otherwise, and would be for both."""
    data = Path("run", "model.safetensors").read_bytes()
    changed = data.replace(rb"\"mean\": [0.5]", rb"\"mean\": [0.4]")
    assert changed != data
    Path("run", "model.safetensors").write_bytes(changed)
    assert PROGRAMS["evaluate a file"]() == 2
    assert "takes other images than the classifier of the run" in capsys.readouterr().err


def test_exported_files_of_another_run_are_refused(here, capsys):
    assert export(["other", OWN, "--formats", "safetensors"]) == 0
    shutil.copyfile("other/model.safetensors", "run/model.safetensors")
    refused = "run/model.safetensors: is of another student than quantized.safetensors beside it"
    assert PROGRAMS["evaluate a file"]() == 2
    assert refused in capsys.readouterr().err
    shutil.copyfile("other/export.json", "run/export.json")
    assert PROGRAMS["evaluate a file"]() == 2
    assert refused in capsys.readouterr().err
    assert PROGRAMS["report"]() == 2
    assert "run/export.json: is of another run" in capsys.readouterr().err
    assert PROGRAMS["export"]() == 0
    assert PROGRAMS["evaluate a file"]() == PROGRAMS["report"]() == 0


def test_a_later_export_keeps_what_is_known_of_earlier_files(here, capsys):
    assert export(["run", OWN, "--formats", "pt2"]) == 0
    assert PROGRAMS["evaluate a file"]() == 0
    Path("run", "model.safetensors").write_bytes(Path("run", "generator.safetensors").read_bytes())
    assert export(["run", OWN, "--formats", "pt2"]) == 0
    assert PROGRAMS["evaluate a file"]() == 2


def with_other_answers(model):
    """Let a model compute something else with the weights that it has."""
    model.register_forward_hook(lambda module, images, logits: -logits)
    return model


def test_code_that_was_edited_is_refused(here, monkeypatch, capsys):
    monkeypatch.setattr(networks, "small_gray", lambda: with_other_answers(small_gray()))
    before = contents()
    for program in PROGRAMS.values():
        assert program() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"answers of the classifier: {NAME} has the weights that the run was made" in line
    assert train([OWN, "--resume=run"]) == 2
    assert "answers of the classifier: expected those that" in capsys.readouterr().err
    assert contents() == before


@pytest.mark.parametrize(
    ("found", "are_same"),
    [
        ("1 -2 0.5", True),
        ("1.1 -2 0.5", True),  # computed in bfloat16
        ("1.2 -2 0.5", False),
        ("1 -2", False),
        ("1 nan 0.5", False),
        ("one", False),
    ],
)
def test_answers_are_the_same_but_for_rounding(found, are_same):
    assert are_same_answers(found, "1 -2 0.5") is are_same
    assert are_same_answers(found.replace("one", "nan"), found.replace("one", "nan"))


def test_a_student_of_another_run_is_refused(here, capsys):
    shutil.copyfile("other/quantized.safetensors", "run/quantized.safetensors")
    assert PROGRAMS["evaluate"]() == 2
    assert "(seed is 0, and was 1)" in capsys.readouterr().err


def test_a_report_leaves_out_other_evaluation_images(here):
    write_fashion_mnist(Path("images"), count=30)
    assert PROGRAMS["report"]() == 0
    page = Path("run", "report.html").read_text()
    assert "The evaluation images in images are others than those of the run" in page


def test_a_run_of_an_earlier_version_is_read_with_a_warning_and_not_resumed(here, capsys):
    without_note()
    save_file(load_file("run/generator.safetensors"), "run/generator.safetensors")
    edit(seed=7)
    assert PROGRAMS["evaluate"]() == 0
    assert "does not say what it was made with" in capsys.readouterr().out
    before = contents()
    assert train([OWN, "--resume=run"]) == 2
    assert "is finished, has no checkpoint, and does not say" in capsys.readouterr().err
    assert contents() == before


@pytest.mark.parametrize("note", ["[", "[]", '{"made_with": 1}', '{"made_with": {"seed": 0}}', "9"])
def test_a_damaged_note_gives_one_line(here, capsys, note):
    student = load_file("run/quantized.safetensors")
    save_file(student, "run/quantized.safetensors", {"zscgan_ext": note})
    assert PROGRAMS["evaluate"]() == 2
    assert "quantized.safetensors: its metadata cannot be read (" in capsys.readouterr().err


def test_a_variable_that_takes_fewer_bits_is_told(here, capsys, monkeypatch):
    warnings = json.loads(Path("run", "metrics.json").read_text())["warnings"]
    assert any(line.startswith("ONEDNN_DEFAULT_FPMATH_MODE: BF16") for line in warnings)
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert PROGRAMS["evaluate"]() == 0
    printed = capsys.readouterr().out
    assert "warning: ONEDNN_DEFAULT_FPMATH_MODE: BF16" in printed
    assert "does not say what it was made with" not in printed
