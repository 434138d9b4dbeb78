"""Every run begins with an instant student, and ends with the best one."""

import json

import pytest
import torch
from networks import small_gray
from runs import OWN, TINY
from safetensors.torch import load_file

import zscgan_ext
from zscgan_ext import whole_run
from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.run_folder.files import GENERATOR, INSTANT_STUDENT, STUDENT
from zscgan_ext.run_folder.finished_run import open_run
from zscgan_ext.stages import sequence, student_stages
from zscgan_ext.train import main

RUN = [each for each in TINY if each != "--export=none"]


def wreck(student) -> None:
    """Leave nothing of what a student knows."""
    with torch.no_grad():
        for layer in student.layers:
            layer.layer.weight.neg_()


def equal(state, other) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


@pytest.fixture
def fine_tuning(monkeypatch):
    """A list of what is done to a student after its fine-tuning."""
    after: list = []
    usual = student_stages.train_student

    def train(run, variant, student, *others):
        usual(run, variant, student, *others)
        for change in after:
            change(student)

    monkeypatch.setattr(student_stages, "train_student", train)
    return after


def test_the_files_hold_the_instant_student_where_fine_tuning_made_it_worse(
    tmp_path, fine_tuning, capsys
):
    fine_tuning.append(wreck)
    assert main([*RUN, f"--output={tmp_path}"]) == 0
    choice = json.loads((tmp_path / "metrics.json").read_text())["choice"]
    assert choice["chosen"] == "instant"
    assert choice["divergence"]["instant"] < choice["divergence"]["fine_tuned"]
    assert "result: instant, from batch-norm statistics" in capsys.readouterr().out
    classifier = load_classifier(small_gray(), image_size=28, mean=[0.5], std=[0.25])
    expected = zscgan_ext.quantize(classifier)
    assert equal(load_file(tmp_path / STUDENT), expected.state_dict())
    loaded = zscgan_ext.load_quantized(tmp_path / "model.safetensors", small_gray())
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(loaded(images), expected(images))
    assert not (tmp_path / INSTANT_STUDENT).exists()


def test_no_exported_file_of_the_instant_student_stays_beside_another(tmp_path, monkeypatch):
    """As of a run that was stopped and then resumed with other formats."""
    monkeypatch.setattr(whole_run, "export_student", lambda run: None)
    assert main([*RUN, "--export=safetensors", f"--output={tmp_path}"]) == 0
    held = {file.name for file in tmp_path.iterdir()}
    assert STUDENT in held
    assert not held & {"model.safetensors", "export.json"}


def test_an_unfinished_run_says_that_it_is(tmp_path, capsys):
    assert main([*RUN, f"--output={tmp_path}"]) == 0
    name = OWN.partition("=")[2]
    open_run(tmp_path, name)
    assert "has not come to its end" not in capsys.readouterr().out
    (tmp_path / INSTANT_STUDENT).write_bytes((tmp_path / STUDENT).read_bytes())
    open_run(tmp_path, name)
    assert (
        f"warning: {tmp_path} is of a run that has not come to its end" in capsys.readouterr().out
    )


def test_the_files_hold_the_fine_tuned_student_where_that_is_better(
    tmp_path, fine_tuning, monkeypatch
):
    tuned: list = []
    fine_tuning.append(lambda student: tuned.append(dict(student.state_dict())))
    usual = sequence.held_back_divergences

    def compare(run, students, generator):
        wreck(students[0])  # the instant one
        return usual(run, students, generator)

    monkeypatch.setattr(sequence, "held_back_divergences", compare)
    assert main([*RUN, f"--output={tmp_path}"]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["choice"]["chosen"] == "fine_tuned"
    assert equal(load_file(tmp_path / STUDENT), tuned[0])


def test_a_student_can_be_used_before_a_generator_is_learned(tmp_path, monkeypatch, capsys):
    usual = sequence.learn_generator
    found: list = []

    def learn(run):
        loaded = zscgan_ext.load_quantized(tmp_path / "model.safetensors", small_gray())
        found.append(loaded(torch.zeros(1, 1, 28, 28)).shape)
        assert (tmp_path / STUDENT).exists()
        print("learning begins")
        return usual(run)

    monkeypatch.setattr(sequence, "learn_generator", learn)
    assert main([*RUN, f"--output={tmp_path}"]) == 0
    assert found == [(1, 10)]
    output = capsys.readouterr().out
    assert output.index("the quantized classifier is in") < output.index("learning begins")


def test_the_generator_is_the_same_with_and_without_a_student_before_it(tmp_path):
    runs = {"first": [], "alone": ["--stop-after=synthesis"]}
    for name, more in runs.items():
        assert main([*RUN, *more, f"--output={tmp_path / name}"]) == 0
    first, alone = (load_file(tmp_path / name / GENERATOR) for name in runs)
    assert equal(first, alone)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in runs]
    assert logs[0].startswith(logs[1])
    assert OWN in RUN
