"""The Python API does what the main program does, with objects instead of files."""

import copy
import dataclasses
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
from zscgan_ext.config.fields import warn_of_renamed
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
    "out of range": ({"batch_size": 0}, "batch_size: expected a number above 0, got 0"),
    "widths": ({"bits": "w9a9"}, "bits: expected w2a2 to w8a8, .* got 'w9a9'"),
    "scheme": ({"scheme": "x"}, "scheme: expected one of deploy, paper, got 'x'$"),
    "nearly a scheme": ({"scheme": "papers"}, r"scheme: .* got 'papers', did you mean paper\?"),
    "ranges": ({"ranges": "x"}, "ranges: expected one of min_kl, narrower, .* got 'x'"),
    "rounding": ({"rounding": "x"}, "rounding: expected one of squant, nearest, got 'x'"),
    "preset": (
        {"preset": "x"},
        "preset: expected one of instant, quick, default, thorough, got 'x'",
    ),
    "preset that is none": ({"preset": ["quick"]}, r"preset: expected one of .* got \('quick',\)"),
    "distance": ({"distance": "x"}, "distance: expected one of gaussian_kl, .* got 'x'"),
    "precision": ({"precision": "x"}, "precision: expected one of auto, float32, .* got 'x'"),
    "memory format": ({"memory_format": "x"}, "memory_format: expected one of auto, .* got 'x'"),
    "CUDA graphs": ({"cuda_graphs": True}, "cuda_graphs: expected one of auto, on, off, got True"),
    "training": ({"training": "x"}, "training: expected one of staged, alternating, got 'x'"),
    "text for a number": ({"batch_size": "8"}, "batch_size: expected a whole number, got '8'"),
    "half an image": ({"batch_size": 8.5}, "batch_size: expected a whole number, got 8.5"),
    "a boolean": ({"batch_size": True}, "batch_size: expected a whole number, got True"),
    "none": ({"batch_size": None}, "batch_size: expected a whole number, got None"),
    "text for a rate": ({"temperature": "4"}, "temperature: expected a number, got '4'"),
    "not a number": (
        {"temperature": float("nan")},
        "temperature: expected a finite number, got nan",
    ),
    "number for a switch": ({"compile": 1}, "compile: expected True or False, got 1"),
    "widths as a number": ({"bits": 4}, "bits: expected text, got 4"),
    "device": ({"device": 0}, "device: expected text, got 0"),
    "device that is none": (
        {"device": torch.device("meta")},
        "device: expected auto, .* got 'meta'",
    ),
    "means": ({"mean": (0.5, "x")}, r"mean: expected a number for each .* got \(0.5, 'x'\)"),
    "deviations": ({"std": (0, 0, 0)}, "std: expected numbers above 0, got 0"),
}


@pytest.mark.parametrize(("settings", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_settings_are_named(classifier, generator, settings, message):
    with pytest.raises(InputError, match=message):
        zscgan_ext.quantize(classifier, generator, **settings)


def state_of(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, state_of(one), state_of(other)))


CPU_CONFIG = zscgan_ext.ExecutionConfig(device="cpu")


def test_configurations_and_keywords_give_the_same_generator(classifier, generator):
    config = zscgan_ext.GeneratorConfig(steps=3, batch_size=8, latent_dim=8)
    alone = zscgan_ext.train_generator(classifier, config, execution=CPU_CONFIG)
    assert same(alone, generator)
    wider = dataclasses.replace(config, latent_dim=16)
    both = zscgan_ext.train_generator(classifier, config=wider, latent_dim=8, device="cpu")
    assert same(both, generator)
    assert wider.latent_dim == 16
    other = zscgan_ext.train_generator(classifier, wider, execution=CPU_CONFIG)
    assert other.linear.weight.shape != generator.linear.weight.shape


def test_configurations_and_keywords_give_the_same_student(classifier, generator, student):
    config = zscgan_ext.QuantizationConfig(bits="w4a4", calibration_batches=2)
    alone = zscgan_ext.quantize(classifier, generator, config, execution=CPU_CONFIG, batch_size=8)
    assert same(alone, student)
    wide = dataclasses.replace(config, bits="w8a8")
    both = zscgan_ext.quantize(classifier, generator, wide, bits="w4a4", **FEW)
    assert same(both, student)
    assert not same(zscgan_ext.quantize(classifier, generator, wide, **FEW), student)
    again = copy.deepcopy(student)
    few = zscgan_ext.FineTuningConfig(steps=2, batch_size=4)
    zscgan_ext.fine_tune(student, classifier, generator, few, execution=CPU_CONFIG)
    sizes = {"fine_tuning_steps": 2, "fine_tuning_batch_size": 4}
    zscgan_ext.fine_tune(again, classifier, generator, device="cpu", **sizes)
    assert same(again, student)


NO_CONFIG = [5, "quick", {"steps": 3}, zscgan_ext.RunConfig(), zscgan_ext.GeneratorConfig]


@pytest.mark.parametrize("config", NO_CONFIG, ids=str)
def test_a_configuration_of_another_class_is_named(classifier, generator, student, config):
    calls = {
        "GeneratorConfig": lambda **more: zscgan_ext.train_generator(classifier, **more),
        "QuantizationConfig": lambda **more: zscgan_ext.quantize(classifier, generator, **more),
        "FineTuningConfig": lambda **more: zscgan_ext.fine_tune(
            student, classifier, generator, **more
        ),
    }
    found = type(config).__name__
    for expected, call in calls.items():
        with pytest.raises(InputError, match=f"^config: expected {expected}, got {found}$"):
            call(config=config)
        with pytest.raises(InputError, match=f"^execution: expected ExecutionConfig, got {found}$"):
            call(execution=config)
    with pytest.raises(InputError, match=r"^config: expected GeneratorConfig, got FineTuningCon"):
        zscgan_ext.train_generator(classifier, zscgan_ext.FineTuningConfig())


def test_a_device_that_a_configuration_names_has_to_exist(classifier):
    execution = zscgan_ext.ExecutionConfig(device="cuda:99")
    with pytest.raises(InputError, match=r"^device: torch finds .* got 'cuda:99'"):
        zscgan_ext.train_generator(classifier, execution=execution)


@pytest.mark.parametrize(
    ("former", "name"),
    [({"ranges": "least_divergence"}, "min_kl"), ({"rounding": "balanced"}, "squant")],
)
def test_former_values_are_accepted_with_one_warning(
    classifier, generator, student, capsys, former, name
):
    warn_of_renamed.cache_clear()
    few = {"bits": "w4a4", "calibration_batches": 2, **FEW}
    for _ in range(2):
        assert same(zscgan_ext.quantize(classifier, generator, **former, **few), student)
    config = zscgan_ext.QuantizationConfig(bits="w4a4", calibration_batches=2, **former)
    assert same(zscgan_ext.quantize(classifier, generator, config, **FEW), student)
    ((option, value),) = former.items()
    expected = f"warning: {option}: {value} is deprecated, it is called {name} now\n"
    assert capsys.readouterr().err == expected


def test_settings_of_other_types_that_say_the_same_are_taken(classifier, generator):
    numbers = {"calibration_batches": np.int64(1), "temperature": np.float32(4), "seed": 0}
    device = {"batch_size": 8, "device": torch.device("cpu")}
    assert zscgan_ext.quantize(classifier, generator, **numbers, **device)


def loading(**arguments):
    return lambda _: zscgan_ext.load_classifier(small_residual(), **arguments)


LOADING = {
    "no classifier": (
        lambda _: zscgan_ext.load_classifier(5),
        "classifier: expected a name or .* got a int",
    ),
    "deviations of 0": (loading(std=(0, 0, 0)), "std: expected numbers above 0, got 0"),
    "one deviation of 0": (
        loading(image_size=8, std=[0.1, 0.0, 1]),
        "std: expected numbers above 0, got 0.0",
    ),
    "negative deviations": (loading(std=(-1.0, 1, 1)), "std: expected numbers above 0, got -1.0"),
    "mean that is none": (
        loading(mean=(0.1, float("nan"), 1)),
        "mean: expected a finite number, got nan",
    ),
    "one mean for all": (loading(mean=0.5), "mean: expected a number for each channel.* got 0.5"),
    "no means": (loading(mean=()), "mean, std: expected a number for each channel, got none"),
    "too few means": (loading(mean=(0.5,)), r"mean: 1 value\(s\), the classifier has 3"),
    "no pixels": (loading(image_size=0), "image_size: expected a number above 0, got 0"),
    "negative size": (loading(image_size=-8), "image_size: expected a number above 0, got -8"),
    "half a pixel": (
        loading(image_size=8.5),
        "image_size: expected a whole number or text or None, got 8.5",
    ),
    "no classes": (loading(num_classes=0), "num_classes: expected a number above 0, got 0"),
    "text for classes": (
        loading(num_classes="5"),
        "num_classes: expected a whole number or None, got '5'",
    ),
    "no path": (loading(weights=5), "weights: expected a path, got 5"),
    "path with a zero": (loading(weights="a\0b"), r"weights: expected a path, got 'a\\x00b'"),
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
    "NaN": (
        [with_value(torch.nan)],
        "images: expected finite values, got NaN or infinity in a batch",
    ),
    "infinity": ([(with_value(-torch.inf), LABELS)], "images: expected finite values, got NaN"),
    "NaN later": ([GOOD, with_value(torch.nan)], "images: expected finite values, got NaN"),
    "bytes": (
        [GOOD.byte()],
        "images: expected normalized ones, .* got torch.uint8, torch.strided, on cpu",
    ),
    "doubles": ([GOOD.double()], "images: expected normalized ones, .* got torch.float64"),
    "halves": ([GOOD.half()], "images: expected normalized ones, .* got torch.float16"),
    "complex": ([GOOD * 1j], "images: expected normalized ones, .* got torch.complex64"),
    "sparse": ([GOOD.to_sparse()], "images: expected .* got torch.float32, torch.sparse_coo"),
    "without values": (
        [GOOD.to("meta")],
        "images: expected .* got torch.float32, torch.strided, on meta",
    ),
    "one image": ([GOOD[0]], r"images: expected .*\[N, 3, 8, 8\], got \[3, 8, 8\]"),
    "other channels": ([GOOD[:, :1]], r"images: expected .*\[N, 3, 8, 8\], got \[4, 1, 8, 8\]"),
    "other size": ([GOOD[..., :7]], r"images: expected .*\[N, 3, 8, 8\], got \[4, 3, 8, 7\]"),
    "channels last": (
        [GOOD.permute(0, 2, 3, 1)],
        r"images: expected .*\[N, 3, 8, 8\], got \[4, 8, 8, 3\]",
    ),
    "no image": ([GOOD[:0]], "images: expected one or more images in each batch, got an empty one"),
    "an array": ([GOOD.numpy()], "images: expected normalized ones, .* got a ndarray in a batch"),
    "names": (["cat.png"], "images: expected normalized ones, .* got a str in a batch"),
    "nothing": ([None], "images: expected normalized ones, .* got a NoneType in a batch"),
    "three parts": (
        [(GOOD, LABELS, LABELS)],
        "images: expected images, or images and labels in a batch, got 3 parts",
    ),
    "a dictionary": (
        [{"image": GOOD}],
        "images: expected normalized ones, .* got a dict in a batch",
    ),
    "fewer labels": (
        [(GOOD, LABELS[:3])],
        r"images: labels: expected a tensor .*\[4\] .* got torch.int64 \[3\]",
    ),
    "float labels": (
        [(GOOD, LABELS.float())],
        "images: labels: expected a tensor of integers .* got torch.float32",
    ),
    "one-hot labels": (
        [(GOOD, torch.zeros(4, 5).long())],
        r"images: labels: expected .* got torch.int64 \[4, 5\]",
    ),
    "labels beyond": (
        [(GOOD, LABELS + 5)],
        "images: labels: expected .* from 0 to 4, got them from 5 to 5",
    ),
    "labels below": ([(GOOD, LABELS - 1)], "images: labels: expected .* got them from -1 to -1"),
    "list of labels": (
        [(GOOD, [0, 1, 2, 3])],
        "images: labels: expected a tensor of integers .* got a list",
    ),
    "a tensor": (GOOD, "images: expected a generator, or batches such as .* got a Tensor"),
    "a name": ("fashion-mnist", "images: expected a generator, .* got a str"),
    "a dictionary of batches": ({"a": GOOD}, "images: expected a generator, .* got a dict"),
    "no images": (None, "images: expected a generator, .* got a NoneType"),
    "a number": (5, "images: expected a generator, .* got a int"),
}


@pytest.mark.parametrize(("images", "message"), IMAGES.values(), ids=IMAGES)
def test_images_that_do_not_fit_are_named(classifier, student, tmp_path, images, message):
    calls = [lambda: zscgan_ext.fine_tune(student, classifier, images, fine_tuning_steps=2, **FEW)]
    if images is not None:  # the others need no images
        calls += [
            lambda: zscgan_ext.quantize(classifier, images, calibration_batches=2, **FEW),
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
        "student: expected what quantize gave, got a SmallResidual": classifier.model,
        "student: expected what quantize gave, got a NoneType": None,
        "student: expected what quantize or fine_tune gave, got one loaded from a file": loaded,
        "student: expected torch.float32 in .*, got torch.float16": half,
        "student: has NaN or infinite values, or none, in ": broken,
    }
    for message, model in wrong.items():
        with pytest.raises(InputError, match=message.replace("SmallResidual", r"\w+")):
            zscgan_ext.fine_tune(model, classifier, generator, fine_tuning_steps=1, **FEW)
    with pytest.raises(
        InputError, match=r"classifier: expected what load_class.* got a SmallResidual"
    ):
        zscgan_ext.train_generator(small_residual(), **LEARN)
    with pytest.raises(
        InputError, match="classifier: expected what load_classifier gave, got a str"
    ):
        zscgan_ext.evaluate(student, "resnet20")


MODELS = {
    "none": (None, "model: expected what maps images to logits, got a NoneType"),
    "raises": (lambda _: 1 // 0, r"model: cannot take images \[2, 3, 8, 8\] \(ZeroDivisionError"),
    "other channels": (nn.Conv2d(1, 1, 1), "model: cannot take images .*RuntimeError"),
    "no tensor": (lambda _: "x", "model: expected logits from it, got a str"),
    "no classes": (
        lambda x: x.mean((1, 2, 3)),
        r"model: expected logits \[2, 5\] from it, got \[2\]",
    ),
    "other classes": (
        lambda x: torch.zeros(len(x), 7),
        r"model: expected logits \[2, 5\] from it, got \[2, 7\]",
    ),
    "one answer": (
        lambda x: torch.zeros(1, 5),
        r"model: expected logits \[2, 5\] from it, got \[1, 5\]",
    ),
    "integers": (
        lambda x: torch.zeros(len(x), 5).long(),
        "model: expected logits in floating point from it, got torch.int64",
    ),
    "NaN": (lambda x: torch.full((len(x), 5), torch.nan), "the classifier gives NaN or infinite"),
}


@pytest.mark.parametrize(("model", "message"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_measured_are_named(classifier, model, message):
    data = LabelledImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=f"^{message}"):
        zscgan_ext.evaluate(model, classifier, data)


PIXELS = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
DATA = {
    "no data": (5, "data: expected the name of labelled images, .* got a int"),
    "missing": (Path("gone"), "gone: no such folder"),
    "batches": ([GOOD], "data: expected the name of labelled images, .* got a list"),
    "label below 0": (
        LabelledImages(PIXELS, torch.tensor([0, -1])),
        "data: labels: expected .* got them from -1 to 0",
    ),
    "label beyond": (LabelledImages(PIXELS, torch.tensor([0, 5])), "labels up to 5 were found"),
    "float labels": (
        LabelledImages(PIXELS, torch.zeros(2)),
        "data: labels: expected a tensor of integers .* got torch.float32",
    ),
    "two columns": (
        LabelledImages(PIXELS, LABELS.view(2, 2)),
        "data: expected images with a label for each, got 2 images, labels .2, 2",
    ),
    "empty": (
        LabelledImages(PIXELS[:0], LABELS[:0]),
        "data: expected images with a label for each, got 0 images",
    ),
    "floats": (
        LabelledImages(GOOD[:2], LABELS[:2]),
        "data: expected images torch.uint8 .* got torch.float32",
    ),
    "other size": (
        LabelledImages(PIXELS[..., :4], LABELS[:2]),
        r"data: expected images torch.uint8 .* got torch.uint8 \[2, 3, 8, 4\]",
    ),
    "other channels": (
        LabelledImages(PIXELS[:, :1], LABELS[:2]),
        r"data: expected images torch.uint8 .* got torch.uint8 \[2, 1, 8, 8\]",
    ),
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
    "onnx": "formats: expected a sequence of names, such as .* got the text 'onnx'",
    5: "formats: expected a sequence of onnx, pt2, safetensors, got a int",
    (5,): "formats: expected onnx, pt2, safetensors, got 5",
    ((),): r"formats: expected onnx, pt2, safetensors, got \(\)",
}


@pytest.mark.parametrize(("formats", "message"), FORMATS.items())
def test_formats_that_are_none_are_named(classifier, student, tmp_path, formats, message):
    with pytest.raises(InputError, match=f"^{message}"):
        zscgan_ext.export(classifier, student, [GOOD], tmp_path, formats)
    with pytest.raises(InputError, match=r"^folder: expected a path, got 5"):
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
    with pytest.raises(
        InputError,
        match=r"^training: expected staged, only python -m zscgan_ext\.train trains the generator",
    ):
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
    with pytest.raises(InputError, match="images: expected more batches, got 2"):
        zscgan_ext.quantize(classifier, iter(batches), calibration_batches=3)
    with pytest.raises(InputError, match="images: expected more batches, got 0"):
        zscgan_ext.quantize(classifier, [])
    with pytest.raises(InputError, match="images: expected labels too, which label_weight needs"):
        zscgan_ext.fine_tune(student, classifier, batches, label_weight=1.0)
    with pytest.raises(InputError, match="formats: expected onnx, pt2, safetensors, got 'onxn'"):
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
