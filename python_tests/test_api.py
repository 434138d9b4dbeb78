"""The Python API does what the main program does, with objects instead of files."""

import copy
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import RGB8, normal_batches, small_gray, small_residual
from runs import TINY, write_fashion_mnist
from safetensors.torch import load_file
from torch import nn

import zscgan_ext
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.errors import InputError
from zscgan_ext.images.datasets import LabelledImages
from zscgan_ext.measures import agreement, predict, top1
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
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
    "scheme": ({"scheme": "x"}, "scheme: 'x', needed is one of deploy, paper"),
    "nearly a scheme": ({"scheme": "papers"}, "scheme: 'papers', did you mean paper"),
    "ranges": ({"ranges": "x"}, "ranges: 'x', needed is one of least_divergence, narrower"),
    "rounding": ({"rounding": "x"}, "rounding: 'x', needed is one of balanced, nearest"),
    "preset": ({"preset": "x"}, "preset: 'x', needed is one of quick, default, thorough"),
    "preset that is none": ({"preset": ["quick"]}, r"preset: \('quick',\), needed is one of"),
    "distance": ({"distance": "x"}, "distance: 'x', needed is one of gaussian_kl"),
    "precision": ({"precision": "x"}, "precision: 'x', needed is one of auto, float32"),
    "memory format": ({"memory_format": "x"}, "memory_format: 'x', needed is one of auto"),
    "CUDA graphs": ({"cuda_graphs": True}, "cuda_graphs: True, needed is one of auto, on, off"),
    "training": ({"training": "x"}, "training: 'x', needed is one of staged, alternating"),
    "text for a number": ({"batch_size": "8"}, "batch_size: '8', needed is a whole number"),
    "half an image": ({"batch_size": 8.5}, "batch_size: 8.5, needed is a whole number"),
    "a boolean": ({"batch_size": True}, "batch_size: True, needed is a whole number"),
    "none": ({"batch_size": None}, "batch_size: None, needed is a whole number"),
    "text for a rate": ({"temperature": "4"}, "temperature: '4', needed is a number"),
    "not a number": ({"temperature": float("nan")}, "temperature: nan, needed is a finite number"),
    "number for a switch": ({"compile": 1}, "compile: 1, needed is True or False"),
    "widths as a number": ({"bits": 4}, "bits: 4, needed is text"),
    "device": ({"device": 0}, "device: 0, needed is text"),
    "device that is none": ({"device": torch.device("meta")}, "device: 'meta', accepted are auto"),
    "means": ({"mean": (0.5, "x")}, r"mean: \(0.5, 'x'\), needed is a number for each channel"),
    "deviations": ({"std": (0, 0, 0)}, "std: 0, needed are numbers above 0"),
}


@pytest.mark.parametrize(("settings", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_settings_are_named(classifier, generator, settings, message):
    with pytest.raises(InputError, match=message):
        zscgan_ext.quantize(classifier, generator, **settings)


def test_settings_of_other_types_that_say_the_same_are_taken(classifier, generator):
    numbers = {"calibration_batches": np.int64(1), "temperature": np.float32(4), "seed": 0}
    device = {"batch_size": 8, "device": torch.device("cpu")}
    assert zscgan_ext.quantize(classifier, generator, **numbers, **device)


def loading(**arguments):
    return lambda _: zscgan_ext.load_classifier(small_residual(), **arguments)


LOADING = {
    "no classifier": (lambda _: zscgan_ext.load_classifier(5), "classifier: a int, needed is a na"),
    "deviations of 0": (loading(std=(0, 0, 0)), "std: 0, needed are numbers above 0"),
    "one deviation of 0": (loading(image_size=8, std=[0.1, 0.0, 1]), "std: 0.0, needed are numb"),
    "negative deviations": (loading(std=(-1.0, 1, 1)), "std: -1.0, needed are numbers above 0"),
    "mean that is none": (loading(mean=(0.1, float("nan"), 1)), "mean: nan, needed is a finite"),
    "one mean for all": (loading(mean=0.5), "mean: 0.5, needed is a number for each channel"),
    "no means": (loading(mean=()), "mean, std: no values"),
    "too few means": (loading(mean=(0.5,)), r"mean: 1 value\(s\), the classifier has 3"),
    "no pixels": (loading(image_size=0), "image_size: 0, needed is a number above 0"),
    "negative size": (loading(image_size=-8), "image_size: -8, needed is a number above 0"),
    "half a pixel": (loading(image_size=8.5), "image_size: 8.5, needed is a whole number"),
    "no classes": (loading(num_classes=0), "num_classes: 0, needed is a number above 0"),
    "text for classes": (loading(num_classes="5"), "num_classes: '5', needed is a whole number"),
    "no path": (loading(weights=5), "weights: 5, needed is a path"),
    "path with a zero": (loading(weights="a\0b"), "weights: .*, needed is a path"),
    "missing weights": (loading(weights="gone.pt"), "weights: gone.pt cannot be read"),
    "weights without value": (
        lambda _: zscgan_ext.load_classifier(small_residual().to("meta")),
        "classifier: its weight .* is on the meta device",
    ),
    "no quantized file": (
        lambda _: zscgan_ext.load_quantized(5),
        "file: expected a path, got a int",
    ),
    "quantized classifier that is none": (
        lambda _: zscgan_ext.load_quantized("x", 5),
        "classifier: expected a name or a torch.nn.Module, got a int",
    ),
}


@pytest.mark.parametrize(("call", "message"), LOADING.values(), ids=LOADING)
def test_wrong_arguments_of_loading_are_named(call, message):
    with pytest.raises(zscgan_ext.InputError, match=f"^{message}"):
        call(None)


GOOD = torch.zeros(4, 3, 8, 8)
LABELS = torch.zeros(4, dtype=torch.int64)


def with_value(value: float) -> torch.Tensor:
    images = GOOD.clone()
    images[1, 2, 3, 4] = value
    return images


IMAGES = {
    "NaN": ([with_value(torch.nan)], "images: NaN or infinite values in a batch"),
    "infinity": ([(with_value(-torch.inf), LABELS)], "images: NaN or infinite values"),
    "NaN later": ([GOOD, with_value(torch.nan)], "images: NaN or infinite values"),
    "bytes": ([GOOD.byte()], "images: torch.uint8, torch.strided, on cpu, needed are normal"),
    "doubles": ([GOOD.double()], "images: torch.float64"),
    "halves": ([GOOD.half()], "images: torch.float16"),
    "complex": ([GOOD * 1j], "images: torch.complex64"),
    "sparse": ([GOOD.to_sparse()], "images: torch.float32, torch.sparse_coo"),
    "without values": ([GOOD.to("meta")], "images: torch.float32, torch.strided, on meta"),
    "one image": ([GOOD[0]], r"images: shape \[3, 8, 8\] in a batch"),
    "other channels": ([GOOD[:, :1]], r"images: shape \[4, 1, 8, 8\] in a batch"),
    "other size": ([GOOD[..., :7]], r"images: shape \[4, 3, 8, 7\] in a batch"),
    "channels last": ([GOOD.permute(0, 2, 3, 1)], r"images: shape \[4, 8, 8, 3\] in a batch"),
    "no image": ([GOOD[:0]], "images: a batch is empty"),
    "an array": ([GOOD.numpy()], "images: a ndarray in a batch"),
    "names": (["cat.png"], "images: a str in a batch"),
    "nothing": ([None], "images: a NoneType in a batch"),
    "three parts": ([(GOOD, LABELS, LABELS)], "images: a batch of 3 parts"),
    "a dictionary": ([{"image": GOOD}], "images: a dict in a batch"),
    "fewer labels": ([(GOOD, LABELS[:3])], r"images: labels: torch.int64 \[3\], needed is a ten"),
    "float labels": ([(GOOD, LABELS.float())], "images: labels: torch.float32"),
    "one-hot labels": ([(GOOD, torch.zeros(4, 5).long())], r"images: labels: torch.int64 \[4, 5"),
    "labels beyond": ([(GOOD, LABELS + 5)], "images: labels: from 5 to 5, needed is .* to 4"),
    "labels below": ([(GOOD, LABELS - 1)], "images: labels: from -1 to -1"),
    "list of labels": ([(GOOD, [0, 1, 2, 3])], "images: labels: a list"),
    "a tensor": (GOOD, "images: a Tensor, needed is a generator, or batches such as"),
    "a name": ("fashion-mnist", "images: a str, needed is a generator"),
    "a dictionary of batches": ({"a": GOOD}, "images: a dict, needed is a generator"),
    "no images": (None, "images: a NoneType, needed is a generator"),
    "a number": (5, "images: a int, needed is a generator"),
}


@pytest.mark.parametrize(("images", "message"), IMAGES.values(), ids=IMAGES)
def test_images_that_do_not_fit_are_named(classifier, student, tmp_path, images, message):
    calls = [
        lambda: zscgan_ext.quantize(classifier, images, calibration_batches=2, **FEW),
        lambda: zscgan_ext.fine_tune(student, classifier, images, fine_tuning_steps=2, **FEW),
        lambda: zscgan_ext.export(classifier, student, images, tmp_path),
    ]
    for call in calls:
        with pytest.raises(InputError, match=f"^{message}"):
            call()
    assert not list(tmp_path.iterdir())


def test_generators_and_students_of_other_classifiers_are_named(
    classifier, generator, student, tmp_path
):
    larger = zscgan_ext.load_classifier(small_residual(), image_size=16)
    gray = zscgan_ext.load_classifier(small_gray(), image_size=8)
    wider = zscgan_ext.load_classifier(small_residual(7), image_size=8)
    broken = copy.deepcopy(generator)
    broken.linear.weight.data[0, 0] = torch.nan
    of_another = [larger, gray]
    for other in of_another:
        with pytest.raises(InputError, match=r"^images: the generator makes \[3, 8, 8\] of 5"):
            zscgan_ext.quantize(other, generator, **FEW)
    with pytest.raises(InputError, match=r"^images: the generator has NaN or infinite values"):
        zscgan_ext.quantize(classifier, broken, **FEW)
    for other in (gray, wider, larger):
        images = [torch.zeros(2, *other.preprocessing.shape)]
        with pytest.raises(InputError, match=r"^student: is of another classifier than"):
            zscgan_ext.fine_tune(student, other, images, fine_tuning_steps=1, **FEW)
        with pytest.raises(InputError, match=r"^student: is of another classifier than"):
            zscgan_ext.export(other, student, images, tmp_path)


def test_students_that_are_none_are_named(classifier, generator, student, tmp_path):
    zscgan_ext.export(classifier, student, generator, tmp_path)
    loaded = zscgan_ext.load_quantized(tmp_path / "model.safetensors", small_residual())
    half = copy.deepcopy(student).half()
    broken = copy.deepcopy(student)
    broken.layers[0].layer.weight.data[0] = torch.nan
    wrong = {
        "student: a SmallResidual, needed": classifier.model,
        "student: a NoneType, needed is what quantize gave": None,
        "student: was loaded from a file": loaded,
        "student: .* is torch.float16, needed is torch.float32": half,
        "student: has NaN or infinite values, or none, in ": broken,
    }
    for message, model in wrong.items():
        with pytest.raises(InputError, match=message.replace("SmallResidual", r"\w+")):
            zscgan_ext.fine_tune(model, classifier, generator, fine_tuning_steps=1, **FEW)
    with pytest.raises(InputError, match="classifier: a SmallResidual, needed is what load_class"):
        zscgan_ext.train_generator(small_residual(), **LEARN)
    with pytest.raises(InputError, match="classifier: a str, needed is what load_classifier gave"):
        zscgan_ext.evaluate(student, "resnet20")


MODELS = {
    "none": (None, "model: a NoneType, needed is what maps images to logits"),
    "raises": (lambda _: 1 // 0, r"model: cannot take images \[2, 3, 8, 8\] \(ZeroDivisionError"),
    "other channels": (nn.Conv2d(1, 1, 1), "model: cannot take images .*RuntimeError"),
    "no tensor": (lambda _: "x", "model: gave a str, needed are logits"),
    "no classes": (lambda x: x.mean((1, 2, 3)), r"model: gave \[2\], needed are logits \[2, 5\]"),
    "other classes": (lambda x: torch.zeros(len(x), 7), r"model: gave \[2, 7\], needed are logits"),
    "one answer": (lambda x: torch.zeros(1, 5), r"model: gave \[1, 5\], needed are logits"),
    "integers": (lambda x: torch.zeros(len(x), 5).long(), "model: gave torch.int64"),
    "NaN": (lambda x: torch.full((len(x), 5), torch.nan), "the classifier gives NaN or infinite"),
}


@pytest.mark.parametrize(("model", "message"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_measured_are_named(classifier, model, message):
    data = LabelledImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=f"^{message}"):
        zscgan_ext.evaluate(model, classifier, data)


PIXELS = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
DATA = {
    "no data": (5, "data: a int, needed is the name of labelled images"),
    "missing": (Path("gone"), "gone: no such folder"),
    "batches": ([GOOD], "data: a list, needed is the name"),
    "label below 0": (LabelledImages(PIXELS, torch.tensor([0, -1])), "data: labels: from -1 to 0"),
    "label beyond": (LabelledImages(PIXELS, torch.tensor([0, 5])), "labels up to 5 were found"),
    "float labels": (LabelledImages(PIXELS, torch.zeros(2)), "data: labels: torch.float32"),
    "two columns": (LabelledImages(PIXELS, LABELS.view(2, 2)), "data: 4 images, needed are images"),
    "empty": (LabelledImages(PIXELS[:0], LABELS[:0]), "data: 0 images, needed are images with a"),
    "floats": (LabelledImages(GOOD[:2], LABELS[:2]), "data: images are torch.float32"),
    "other size": (LabelledImages(PIXELS[..., :4], LABELS[:2]), "data: images are torch.uint8"),
    "other channels": (LabelledImages(PIXELS[:, :1], LABELS[:2]), "data: images are torch.uint8"),
}


@pytest.mark.parametrize(("data", "message"), DATA.values(), ids=DATA)
def test_data_that_does_not_fit_is_named(classifier, student, data, message):
    with pytest.raises(InputError, match=f"^{message}"):
        zscgan_ext.evaluate(student, classifier, data)


@pytest.mark.parametrize("batch_size", ["8", 8.0, None, True])
def test_batch_sizes_that_are_none_are_named(classifier, student, batch_size):
    data = LabelledImages(PIXELS, LABELS[:2])
    with pytest.raises(
        InputError, match=f"^batch_size: expected a whole number, got {batch_size!r}"
    ):
        zscgan_ext.evaluate(student, classifier, data, batch_size)


FORMATS = {
    "onnx": "formats: 'onnx' is one text, needed is a sequence of names, such as",
    5: "formats: a int, needed is a sequence",
    (5,): "formats: unknown 5, accepted are onnx and safetensors",
    ((),): r"formats: unknown \(\), accepted are onnx and safetensors",
}


@pytest.mark.parametrize(("formats", "message"), FORMATS.items())
def test_formats_that_are_none_are_named(classifier, student, tmp_path, formats, message):
    with pytest.raises(InputError, match=f"^{message}"):
        zscgan_ext.export(classifier, student, [GOOD], tmp_path, formats)
    with pytest.raises(InputError, match=r"^folder: 5, needed is a path"):
        zscgan_ext.export(classifier, student, [GOOD], 5)
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_its_own_files_alone(classifier, student, tmp_path):
    zscgan_ext.export(classifier, student, [GOOD], tmp_path)
    zscgan_ext.export(classifier, student, [GOOD], tmp_path)
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(InputError, match=r"holds model\.onnx, which run-files\.txt does not list"):
        zscgan_ext.export(classifier, student, [GOOD], tmp_path, ["onnx"])
    assert (tmp_path / "model.onnx").read_text() == "mine"


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
    with pytest.raises(InputError, match="batch_size: expected a number above 0, got 0"):
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
