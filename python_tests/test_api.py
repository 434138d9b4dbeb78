"""The Python API does what the main program does, with objects instead of files."""

import copy
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import RGB8, normal_batches, small_residual
from runs import TINY, write_fashion_mnist
from safetensors.torch import load_file

import zscgan_ext
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.errors import InputError
from zscgan_ext.images.datasets import LabelledImages
from zscgan_ext.measures import agreement, predict, top1
from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.stages import generator_stage
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.train import main as train

ROOT = Path(__file__).parent.parent
FEW = {"batch_size": 8, "device": "cpu"}
LEARN = {**FEW, "synthesis_steps": 3, "latent_dim": 8}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    sizes = {"image_size": 8, "mean": RGB8.mean, "std": RGB8.std}
    return zscgan_ext.load_classifier(small_residual(), **sizes)


@pytest.fixture(scope="module")
def generator(classifier) -> ConditionalGenerator:
    return zscgan_ext.train_generator(classifier, **LEARN)


@pytest.fixture
def student(classifier, generator) -> QuantizedClassifier:
    return zscgan_ext.quantize(classifier, generator, bits="w4a4", calibration_batches=2, **FEW)


def test_importing_the_package_is_fast():
    """Neither torch nor anything else is imported before a function is asked for."""
    program = "import sys, zscgan_ext; print('torch' in sys.modules)"
    command = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_functions_are_no_programs_whatever_was_imported_before():
    program = """
import zscgan_ext
import zscgan_ext.evaluate, zscgan_ext.export.exporter
from zscgan_ext.evaluate.__main__ import main
from zscgan_ext.export import exporter
functions = [getattr(zscgan_ext, name) for name in zscgan_ext.__all__]
assert all(callable(function) for function in functions), functions
assert zscgan_ext.evaluate is functions[zscgan_ext.__all__.index("evaluate")]
assert exporter.export_run
try:
    zscgan_ext.evaluation_of_nothing
except AttributeError as error:
    print(error)
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = "module 'zscgan_ext' has no attribute 'evaluation_of_nothing'"
    assert done.stdout.strip() == expected


def test_a_model_object_is_copied_and_known_by_its_class(classifier):
    model = small_residual()
    loaded = zscgan_ext.load_classifier(model, image_size=8)
    assert loaded.name == "SmallResidual"
    assert loaded.num_classes == 5
    assert loaded.model is not model
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded.model(images), model(images))


def test_the_program_and_the_api_learn_the_same(tmp_path):
    """The same stages on the same random numbers give the same bits."""
    arguments = ["--stop-after=synthesis", "--output", str(tmp_path / "run"), "--seed=3"]
    assert train([*TINY, *arguments]) == 0
    shape = {"num_classes": 10, "image_size": 28, "mean": [0.5], "std": [0.25]}
    small_gray = zscgan_ext.load_classifier("networks:small_gray", **shape)
    sizes = {"synthesis_steps": 6, "batch_size": 8, "latent_dim": 8, "log_interval": 2}
    generator = zscgan_ext.train_generator(small_gray, seed=3, device="cpu", **sizes)
    program = load_file(tmp_path / "run" / "generator.safetensors")
    state = generator.state_dict()
    assert state.keys() == program.keys()
    assert all(torch.equal(value, program[name]) for name, value in state.items())


def test_the_same_seed_gives_the_same_generator_and_disturbs_nothing(classifier, generator):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = zscgan_ext.train_generator(classifier, **LEARN)
    assert torch.equal(torch.rand(1), expected)
    assert not again.training
    for one, other in zip(
        generator.state_dict().values(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    other = zscgan_ext.train_generator(classifier, **LEARN, seed=1)
    assert not torch.equal(other.linear.weight, again.linear.weight)


def test_fine_tuning_brings_the_student_nearer_to_the_classifier(classifier, generator, capsys):
    student = zscgan_ext.quantize(classifier, generator, bits="w2a2", **FEW)  # far from it
    (images, _) = next(normal_batches(1, 64, 3, 8, 8))
    with torch.no_grad():
        expected = classifier.model(images)
        before = (student(images) - expected).square().mean()
        batches = [images for images, _ in normal_batches(4, 32, 3, 8, 8)]
        with torch.enable_grad():
            same = zscgan_ext.fine_tune(student, classifier, batches, fine_tuning_steps=30, **FEW)
        after = (student(images) - expected).square().mean()
    assert same is student
    assert "fine-tuned on given images 30/30" in capsys.readouterr().out
    assert after < before
    assert zscgan_ext.fine_tune(student, classifier, generator, fine_tuning_steps=2, **FEW)
    assert "fine-tuned on generated images 2/2" in capsys.readouterr().out


def test_ranges_are_those_of_the_images_that_were_given(classifier):
    (images, _) = next(normal_batches(1, 16, 3, 8, 8))
    student = zscgan_ext.quantize(classifier, [images], bits="w8a8", calibration_batches=1)
    first = student.activation_quantizers[0]
    assert float(first.running_min) == float(images.min())
    assert float(first.running_max) == float(images.max())
    wide = zscgan_ext.quantize(classifier, iter([(3 * images, None)]), calibration_batches=1)
    assert float(wide.activation_quantizers[0].running_max) == float(3 * images.max())


def test_evaluation_counts_as_the_parts_it_is_made_of(classifier, student):
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 3, 8, 8), generator=random, dtype=torch.uint8)
    data = LabelledImages(pixels, torch.randint(5, (40,), generator=random))
    evaluation = zscgan_ext.evaluate(student, classifier, data, batch_size=16)
    preprocessing = classifier.preprocessing
    logits = predict(student, data, preprocessing, 16, CPU)
    float_logits = predict(classifier.model, data, preprocessing, 16, CPU)
    assert evaluation.images == 40
    assert evaluation.top1 == top1(logits, data.labels)
    assert evaluation.float_top1 == top1(float_logits, data.labels)
    assert evaluation.agreement == agreement(logits, float_logits)
    assert evaluation.top5 == 100
    assert set(evaluation.latency_ms) == {1, 16}
    assert sum(each.images for each in evaluation.classes) == 40
    assert f"{evaluation.top1:10.2f}" in str(evaluation)
    itself = zscgan_ext.evaluate(classifier.model, classifier, data)
    assert itself.agreement == 100


def test_evaluation_on_a_folder(tmp_path):
    images = write_fashion_mnist(tmp_path, count=20)
    resnet20 = zscgan_ext.load_classifier("resnet20")
    evaluation = zscgan_ext.evaluate(resnet20.model, resnet20, str(images))
    assert evaluation.images == 20
    assert evaluation.top1 >= 80


@pytest.mark.parametrize("source", ["generator", "list", "iterator"])
def test_export_writes_what_gives_the_same_logits(classifier, generator, student, tmp_path, source):
    batches = [images for images, _ in normal_batches(2, 8, 3, 8, 8)]
    sources = {"generator": generator, "list": batches, "iterator": iter(batches)}
    needs_gradients = student.layers[0].layer.weight.requires_grad
    formats = ("onnx", "safetensors") if source == "list" else ("safetensors",)
    report = zscgan_ext.export(classifier, student, sources[source], tmp_path, formats)
    file = tmp_path / "model.safetensors"
    assert report["bytes"]["safetensors"] == file.stat().st_size
    assert (tmp_path / "model.onnx").exists() == (source == "list")
    loaded = zscgan_ext.load_quantized(file, small_residual(seed=1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(batches[0]), student(batches[0]))
    assert student.layers[0].layer.weight.requires_grad == needs_gradients


ERRORS = {
    "unknown setting": ({"bit": "w4a4"}, "unknown setting bit, did you mean bits"),
    "out of range": ({"batch_size": 0}, "batch_size: 0, needed is a number above 0"),
    "widths": ({"bits": "w9a9"}, "bits: 'w9a9', accepted are w2a2 to w8a8"),
}


@pytest.mark.parametrize(("settings", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_settings_are_named(classifier, generator, settings, message):
    with pytest.raises(InputError, match=message):
        zscgan_ext.quantize(classifier, generator, **settings)


def test_the_generator_goes_on_learning_in_the_program_alone(classifier, generator, student):
    with pytest.raises(InputError, match=r"^training: the generator goes on learning in python -m"):
        zscgan_ext.fine_tune(student, classifier, generator, training="alternating")


def test_nothing_is_written_where_numbers_go_wrong(classifier, student, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    other_run = [tmp_path / "checkpoints" / f"00000{n}-0.safetensors" for n in range(1, 5)]
    for file in other_run:
        file.touch()
    monkeypatch.chdir(tmp_path)
    settings = {"fine_tuning_steps": 4, "fine_tuning_learning_rate": 1e30}
    batches = [images for images, _ in normal_batches(2, 8, 3, 8, 8)]
    with pytest.raises(InputError, match="fine_tuned: "):
        zscgan_ext.fine_tune(copy.deepcopy(student), classifier, batches, **settings)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "checkpoints", *other_run]


def test_missing_images_and_labels_are_named(classifier, student, tmp_path):
    batches = [images for images, _ in normal_batches(2, 8, 3, 8, 8)]
    with pytest.raises(InputError, match="images: 2 batches were given, more are needed"):
        zscgan_ext.quantize(classifier, iter(batches), calibration_batches=3)
    with pytest.raises(InputError, match="images: 0 batches were given, more are needed"):
        zscgan_ext.quantize(classifier, [])
    with pytest.raises(InputError, match="images: have no labels, which label_weight needs"):
        zscgan_ext.fine_tune(student, classifier, batches, label_weight=1.0)
    with pytest.raises(InputError, match="formats: unknown 'onxn', accepted are onnx and safe"):
        zscgan_ext.export(classifier, student, batches, tmp_path, ("onxn",))
    with pytest.raises(InputError, match="data: give labelled images"):
        zscgan_ext.evaluate(student, classifier)
    data = LabelledImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 5]))
    with pytest.raises(InputError, match="labels up to 5 were found, the classifier has 5"):
        zscgan_ext.evaluate(student, classifier, data)
    with pytest.raises(InputError, match="batch_size: 0, needed is a number above 0"):
        zscgan_ext.evaluate(student, classifier, data.subset(torch.tensor([0])), batch_size=0)


def test_packages_that_are_missing_are_named(classifier, student, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # makes the import fail
    batches = [images for images, _ in normal_batches(2, 8, 3, 8, 8)]
    with pytest.raises(InputError, match="need the package onnx, which is not installed"):
        zscgan_ext.export(classifier, student, batches, tmp_path, ("safetensors", "onnx"))
    assert not list(tmp_path.iterdir())


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generator_stage, "PROBES_PER_CLASS", 1)  # of 1000
    script = ROOT / "examples" / "quantize_your_model.py"
    sizes = ["--image-size=32", "--steps=1", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [str(script), *sizes])
    runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "out" / "model.safetensors").exists()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("3.")  # MB: 3.5 million parameters
