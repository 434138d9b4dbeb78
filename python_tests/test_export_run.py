"""Exporting and evaluating runs as a user does: the programs, their files and their errors."""

import json
import re
import shutil
import sys

import pytest
import torch
from exported import calibrated, small_classifier
from PIL import Image
from runs import SHORT, write_fashion_mnist

import zscgan_ext
from zscgan_ext.evaluate.__main__ import main as evaluate
from zscgan_ext.export import exporter
from zscgan_ext.export.__main__ import main as export
from zscgan_ext.export.onnx import layers as onnx_layers
from zscgan_ext.images.datasets import open_images
from zscgan_ext.measures import predict, top1
from zscgan_ext.run_folder.files import EXPORT
from zscgan_ext.run_folder.files import EXPORTED as ALL_EXPORTED
from zscgan_ext.run_folder.finished_run import open_run
from zscgan_ext.train import main as train
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

CPU = torch.device("cpu")
EXPORTED = {name: ALL_EXPORTED[name] for name in ("onnx", "safetensors")}  # of the run here


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An idx folder with test images."""
    return write_fashion_mnist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """The folder of a short run with both files."""
    folder = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--evaluation-data", str(data), "--output", str(folder), "--bits=w8a8"]
    assert train([*SHORT, *arguments, "--export=onnx,safetensors"]) == 0
    return folder


def report_of(folder):
    return json.loads((folder / EXPORT).read_text())


def copy_of(run, folder):
    """A copy of a run without what export wrote."""
    shutil.copytree(run, folder / "run")
    for name in (*EXPORTED.values(), EXPORT):
        (folder / "run" / name).unlink()
    return folder / "run"


def test_training_exports_what_was_asked_for(run):
    report = report_of(run)
    for name, file in EXPORTED.items():
        assert report["bytes"][name] == (run / file).stat().st_size
    assert report["bytes"]["onnx"] < 0.3 * report["bytes"]["float_onnx"]
    assert report["onnx"]["agreement"] >= 99.5
    assert report["onnx"]["images"] == 512
    assert report["onnx"]["logit_difference"] <= report["onnx"]["allowed_difference"]
    assert report["onnx"]["latency_ms"]["float"] > 0
    assert report["onnx"]["latency_ms"]["quantized"] > 0


def test_the_program_writes_the_same_files(run, tmp_path, capsys):
    copy = copy_of(run, tmp_path)
    assert export([str(copy)]) == 0
    for file in EXPORTED.values():
        assert (copy / file).read_bytes() == (run / file).read_bytes()
    output = capsys.readouterr().out
    assert "of 512 images" in output
    assert re.search(r"float \d+\.\d+ ms, quantized \d+\.\d+ ms", output)


def test_one_format_alone(run, tmp_path):
    copy = copy_of(run, tmp_path)
    assert export([str(copy), "--formats", "safetensors"]) == 0
    assert not (copy / EXPORTED["onnx"]).exists()
    assert "onnx" not in report_of(copy)


def test_the_student_of_the_run_is_what_was_exported(run, data):
    loaded = zscgan_ext.load_quantized(run / EXPORTED["safetensors"])
    images = open_images(str(data), "test", FASHION_MNIST_PREPROCESSING)
    logits = predict(loaded, images, FASHION_MNIST_PREPROCESSING, 60, CPU)
    student = predict(open_run(run).student, images, FASHION_MNIST_PREPROCESSING, 60, CPU)
    assert torch.equal(logits, student)
    metrics = json.loads((run / "metrics.json").read_text())
    assert top1(logits, images.labels) == metrics["top1"]["fine_tuned"]


@pytest.mark.parametrize("name", ["", *EXPORTED.values()])
def test_evaluation_of_a_run_and_of_its_files(run, data, name, capsys):
    assert evaluate([str(run / name), "--data", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = {line[:34].strip(): float(line[34:]) for line in lines[: lines.index("")]}
    metrics = json.loads((run / "metrics.json").read_text())
    assert values["images"] == 60
    assert values["top-1 %"] == pytest.approx(metrics["top1"]["fine_tuned"], abs=0.01)
    assert values["top-1 % of the float classifier"] == pytest.approx(
        metrics["top1"]["float"], abs=0.01
    )
    assert values["agreement with float %"] == pytest.approx(
        metrics["agreement"]["fine_tuned"], abs=0.01
    )
    assert values["top-5 %"] >= values["top-1 %"]
    assert values["latency of one image, ms"] > 0
    table = lines[lines.index("") + 2 :]
    assert sum(int(line.split()[-3]) for line in table) == 60
    assert any(line.startswith("Ankle boot") for line in table)


def test_too_few_class_folders_are_warned_of(run, tmp_path, capsys):
    for name in ("bag", "shirt"):
        (tmp_path / name).mkdir()
        Image.new("L", (28, 28)).save(tmp_path / name / "1.png")
    assert evaluate([str(run), "--data", str(tmp_path)]) == 0
    warning, images = capsys.readouterr().out.splitlines()[:2]
    start = f"warning: {tmp_path}: labels end at 1, the classifier has 10 classes; "
    assert warning.startswith(start)
    assert images.split() == ["images", "2"]


def test_results_are_written_as_json_too(run, data, tmp_path, capsys):
    file = tmp_path / "measured" / "results.json"
    arguments = ["--data", str(data), "--batch-size", "16", "--json", str(file)]
    assert evaluate([str(run / EXPORTED["onnx"]), *arguments]) == 0
    lines, results = capsys.readouterr().out.splitlines(), json.loads(file.read_text())
    values = {line[:34].strip(): float(line[34:]) for line in lines[: lines.index("")]}
    assert values["top-1 %"] == pytest.approx(results["top1"], abs=0.005)
    assert values["expected calibration error %"] == pytest.approx(
        results["calibration_error"], abs=0.005
    )
    assert set(results["latency_ms"]) == {"1", "16"}
    assert values["latency of 16 images, ms"] > values["latency of one image, ms"] > 0
    assert sum(each["images"] for each in results["classes"]) == results["images"] == 60
    assert "Ankle boot" in {each["name"] for each in results["classes"]}


def test_a_file_far_from_its_run_has_no_float_classifier(run, data, tmp_path, capsys):
    shutil.copy(run / EXPORTED["onnx"], tmp_path)
    assert evaluate([str(tmp_path / EXPORTED["onnx"]), "--data", str(data)]) == 0
    output = capsys.readouterr().out
    assert "top-1 %" in output
    assert "float" not in output


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """A folder with the first test images as files, in a folder that is no class."""
    folder = tmp_path_factory.mktemp("unlabelled") / "monday"
    folder.mkdir()
    images = open_images("fashion-mnist", "test", FASHION_MNIST_PREPROCESSING).images[:60, 0]
    for number, pixels in enumerate(images.numpy()):
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def test_images_without_labels_tell_agreement_confidence_and_differences(
    run, data, unlabelled, tmp_path, capsys
):
    results = []
    for number, arguments in enumerate(([unlabelled], [unlabelled.parent, "--unlabelled"])):
        file = tmp_path / f"{number}.json"
        options = ["--data", *map(str, arguments), "--json", str(file)]
        assert evaluate([str(run), *options]) == 0
        results.append(json.loads(file.read_text()))
    output = capsys.readouterr().out
    assert {k: v for k, v in results[0].items() if k != "latency_ms"} == {
        k: v for k, v in results[1].items() if k != "latency_ms"
    }
    opened = open_run(run)
    images = open_images(str(data), "test", FASHION_MNIST_PREPROCESSING)
    before, after = (
        predict(model, images, FASHION_MNIST_PREPROCESSING, 60, CPU)
        for model in (opened.classifier.model, opened.student)
    )
    differ = (before.argmax(1) != after.argmax(1)).nonzero().flatten().tolist()
    found = results[0]["differences"]
    assert {each["file"] for each in found} == {str(unlabelled / f"{i:02d}.png") for i in differ}
    sure = [each["float_confidence"] for each in found]
    assert sure == sorted(sure, reverse=True)
    assert results[0]["agreement"] == pytest.approx(100 * (1 - len(differ) / 60))
    confidence = 100 * after.softmax(1).amax(1).mean().item()
    assert results[0]["confidence"] == pytest.approx(confidence, rel=1e-4)
    assert sum(results[0]["chosen"].values()) == results[0]["images"] == 60
    assert "top-1" not in output


def test_a_file_alone_tells_its_confidence_on_images_without_labels(
    run, unlabelled, tmp_path, capsys
):
    shutil.copy(run / EXPORTED["onnx"], tmp_path)
    assert evaluate([str(tmp_path / EXPORTED["onnx"]), "--data", str(unlabelled)]) == 0
    output = capsys.readouterr().out
    assert "mean confidence %" in output
    assert "float" not in output
    (tmp_path / "empty").mkdir()
    assert evaluate([str(run), "--unlabelled", "--data", str(tmp_path / "empty")]) == 2
    assert evaluate([str(run), "--unlabelled"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("empty: holds no image, accepted are files such as .jpg and .png")
    assert lines[1] == "error: unlabelled: expected --data too, the folder of images"


def test_a_fault_writes_nothing(run, tmp_path, monkeypatch, capsys):
    copy = copy_of(run, tmp_path)
    right = onnx_layers.integer_bias

    def one_third(bias, weight_scale, input_scale):
        integers, scale = right(bias, weight_scale, input_scale)
        return integers // 3, scale

    monkeypatch.setattr(onnx_layers, "integer_bias", one_third)
    assert export([str(copy), "--formats=onnx"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: export: the first node that differs is activation_quantizers.")
    assert not (copy / EXPORTED["onnx"]).exists()
    assert not (copy / EXPORT).exists()


def test_other_logits_of_the_safetensors_file_are_an_error(run, tmp_path, monkeypatch, capsys):
    copy = copy_of(run, tmp_path)
    right = exporter.load_quantized

    def load_with_fault(file, classifier):
        loaded = right(file, classifier)
        loaded.layers[0].layer.bias += 0.5
        return loaded

    monkeypatch.setattr(exporter, "load_quantized", load_with_fault)
    assert export([str(copy), "--formats=safetensors"]) == 2
    assert "the safetensors file gives other logits" in capsys.readouterr().err
    assert not (copy / EXPORTED["safetensors"]).exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_onnx_the_way_to_install_it_is_told(run, monkeypatch, capsys, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = f"error: export: ONNX files need the package {package}, which is not installed"
    assert export([str(run)]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert evaluate([str(run / EXPORTED["onnx"])]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert train([*SHORT, "--export=onnx", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out").exists()


ERRORS = {
    "no run": (["nowhere"], "nowhere: expected the folder of a finished run, it lacks config.yaml"),
    "unknown format": (
        ["RUN", "--formats", "onxn"],
        "export: expected onnx, pt2, safetensors, several with a comma between them, or none, got "
        "'onxn', did you mean onnx?",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_of_export_are_one_line(run, arguments, message, capsys):
    assert export([str(run) if word == "RUN" else word for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


EVALUATION_ERRORS = {
    "nothing there": (["nowhere"], "nowhere: no such file or folder"),
    "another kind": (["other.txt"], "other.txt: accepted are the folder of a run, .onnx and"),
    "no ONNX": (["text.onnx"], "text.onnx: cannot be read as an ONNX model"),
    "no safetensors": (["text.safetensors"], "text.safetensors: cannot be read as safetensors"),
    "no data": (["RUN", "--data", "nowhere"], "nowhere: no such folder"),
    "no batch": (["RUN", "--batch-size", "0"], "batch_size: expected a number above 0, got 0"),
}


@pytest.mark.parametrize(
    ("arguments", "message"), EVALUATION_ERRORS.values(), ids=EVALUATION_ERRORS
)
def test_errors_of_evaluation_are_one_line(run, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("other.txt", "text.onnx", "text.safetensors"):
        (tmp_path / name).write_text("neither")
    assert evaluate([str(run) if word == "RUN" else word for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_labelled_images_are_needed_for_a_classifier_of_ones_own(tmp_path, monkeypatch, capsys):
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 8, 8)
    file = tmp_path / "model.safetensors"
    file.write_bytes(exporter.quantized_file(student, classifier))
    assert evaluate([str(file), "--classifier", "networks:small_residual"]) == 2
    assert capsys.readouterr().err.startswith("error: data: give labelled images")
