"""The main program from end to end, with few steps on few images."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import yaml
from networks import RGB8
from PIL import Image
from runs import SHORT, write_fashion_mnist
from safetensors.torch import load_file

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.config.command_line import parse_config
from zscgan_ext.config.configs import OPTIONS
from zscgan_ext.environment import environment
from zscgan_ext.images.datasets import open_images
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.stages.variants import VARIANTS
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.train import main
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

# Rows of a run that learns a generator.
REAL_ROWS = {"real_calibrated", "real_fine_tuned"}
STUDENT_FILES = {"quantized.safetensors", "model.safetensors", "export.json"}
RUN_FILES = STUDENT_FILES | {
    *("config.yaml", "metrics.json", "metrics.jsonl", "generator.safetensors", "samples"),
    *("predictions.safetensors", "run-files.txt"),
}
PROFILE_FILES = {"trace.json", "profile.txt"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An idx folder with test and training images."""
    folder = write_fashion_mnist(tmp_path_factory.mktemp("data"))
    return write_fashion_mnist(folder, "train")


def train(folder, data, *arguments: str):
    """Run the program; return its exit code."""
    return main([*SHORT, "--evaluation-data", str(data), "--output", str(folder), *arguments])


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """The folder of a run at 8 bits, compared with real images."""
    folder = tmp_path_factory.mktemp("run") / "out"
    assert train(folder, data, "--bits", "w8a8", "--reference-data", str(data)) == 0
    return folder


def test_the_folder_holds_what_a_run_gives(run):
    assert {file.name for file in run.iterdir()} == RUN_FILES
    samples = sorted(file.name for file in (run / "samples").iterdir())
    assert samples == ["step-000001.png", "step-000003.png", "step-000010.png"]
    with Image.open(run / "samples" / "step-000010.png") as grid:
        assert grid.height >= 10 * 28
        assert grid.width >= 10 * 28
        assert len(grid.convert("L").getcolors()) > 20


def test_metrics_have_the_promised_keys(run):
    metrics = metrics_of(run)
    own = {
        *("classifier", "bits", "scheme", "seed", "device", "top1", "agreement", "seconds"),
        *("peak_memory_bytes", "execution", "diversity", "warnings"),
        *("initial_ranges", "layer_bits", "average_weight_bits", "choice"),
        *("head", "mean_average_precision", "made_with"),
    }
    assert set(metrics) == own | set(environment())
    assert metrics["classifier"] == "resnet20"
    assert metrics["bits"] == {"weights": 8, "activations": 8}
    assert metrics["scheme"] == "deploy"
    assert metrics["seed"] == 0
    assert metrics["device"] == "cpu"
    assert set(metrics["top1"]) == set(metrics["agreement"]) == set(VARIANTS)
    stages = {"synthesis", "calibration", "fine_tuning", "evaluation"}
    assert set(metrics["seconds"]) == stages | {"total"}
    assert all(metrics["seconds"][stage] > 0 for stage in stages)
    assert sum(metrics["seconds"][stage] for stage in stages) <= metrics["seconds"]["total"]
    assert 1e6 < metrics["peak_memory_bytes"] < 2**40


def test_accuracy_is_measured_on_the_evaluation_images(run, data):
    classifier = load_classifier("resnet20")
    images = open_images(str(data), "test", FASHION_MNIST_PREPROCESSING)
    batch, labels = next(images.batches(60, FASHION_MNIST_PREPROCESSING))
    with torch.no_grad():
        expected = (classifier.model(batch).argmax(1) == labels).float().mean().item() * 100
    metrics = metrics_of(run)
    assert metrics["top1"]["float"] == pytest.approx(expected)
    assert metrics["agreement"]["float"] == 100
    assert all(0 <= metrics["top1"][row] <= 100 for row in VARIANTS)
    # Eight bits and real images lose next to nothing.
    assert metrics["agreement"]["real_calibrated"] >= 95


def test_initial_ranges_are_those_of_least_divergence(run):
    initial_ranges = metrics_of(run)["initial_ranges"]
    assert set(initial_ranges) == {"fine_tuned", "real_fine_tuned"}
    for facts in initial_ranges.values():
        assert set(facts["divergence"]) == {"narrower", "batch_norm", "images"}
        assert facts["divergence"][facts["chosen"]] <= min(facts["divergence"].values()) / 0.75


def test_the_log_has_every_stage(run):
    log = log_of(run)
    stages = list(dict.fromkeys(entry["stage"] for entry in log))
    assert stages == ["synthesis", "fine_tuned", "real_fine_tuned"]
    steps = {stage: [e["step"] for e in log if e["stage"] == stage] for stage in stages}
    assert steps == {"synthesis": [1, 5, 10], "fine_tuned": [1, 3], "real_fine_tuned": [1, 3]}
    assert all(isinstance(entry["loss"], float) for entry in log)


def test_the_config_reads_back(run):
    config = parse_config(["--config", str(run / "config.yaml")])
    assert config.quantization.bits == "w8a8"
    assert config.output == run
    content = yaml.safe_load((run / "config.yaml").read_text())
    assert set(content) == set(OPTIONS)


def test_the_generator_reads_back(run):
    generator = ConditionalGenerator(10, 8, FASHION_MNIST_PREPROCESSING)
    generator.load_state_dict(load_file(run / "generator.safetensors"))
    images = generator.eval()(*generator.random_inputs(4, torch.Generator()))
    assert images.shape == (4, 1, 28, 28)


def test_the_quantized_classifier_reads_back(run, data):
    classifier = load_classifier("resnet20")
    student = convert(classifier.model, Scheme("deploy", 8, 8), (1, 28, 28))
    student.load_state_dict(load_file(run / "quantized.safetensors"))
    student.quantize_activations()
    images = open_images(str(data), "test", FASHION_MNIST_PREPROCESSING)
    batch, labels = next(images.batches(60, FASHION_MNIST_PREPROCESSING))
    with torch.no_grad():
        top1 = (student(batch).argmax(1) == labels).float().mean().item() * 100
    assert top1 == pytest.approx(metrics_of(run)["top1"]["fine_tuned"], abs=5)


def without_measurements(metrics):
    return {k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_bytes")}


def test_the_same_seed_gives_the_same_run(run, data, tmp_path, capsys):
    arguments = ("--bits", "w8a8", "--reference-data", str(data))
    assert train(tmp_path / "again", data, *arguments) == 0
    again = metrics_of(tmp_path / "again")
    assert without_measurements(again) == without_measurements(metrics_of(run))
    assert log_of(tmp_path / "again") == log_of(run)
    for name in ("generator.safetensors", "quantized.safetensors", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    assert_table(capsys.readouterr().out, again)


def assert_table(output, metrics):
    """The table on the standard output says what the metrics say, and where they lie."""
    lines = output.splitlines()
    header = next(i for i, line in enumerate(lines) if "top-1" in line)
    assert "agreement" in lines[header]
    for line, (row, variant) in zip(lines[header + 1 :], VARIANTS.items(), strict=False):
        values = f"{metrics['top1'][row]:.2f}", f"{metrics['agreement'][row]:.2f}"
        assert line.startswith(variant.label)
        assert tuple(line.removeprefix(variant.label).split()) == values
    assert "again" in lines[-1]


def test_another_seed_gives_another_run(run, data, tmp_path):
    assert train(tmp_path / "other", data, "--seed=1", "--stop-after=synthesis") == 0
    assert log_of(tmp_path / "other")[0]["loss"] != log_of(run)[0]["loss"]


def test_stopping_after_synthesis(data, tmp_path, capsys):
    folder = tmp_path / "out"
    assert train(folder, data, "--stop-after", "synthesis") == 0
    assert {file.name for file in folder.iterdir()} == RUN_FILES - STUDENT_FILES - {
        "predictions.safetensors"
    }
    metrics = metrics_of(folder)
    assert set(metrics["top1"].values()) == {None}
    assert metrics["seconds"]["fine_tuning"] == 0
    assert "top-1" not in capsys.readouterr().out


def test_without_reference_data_its_rows_are_absent(data, tmp_path, capsys):
    assert train(tmp_path / "out", data, "--scheme=paper", "--classifier=resnet20") == 0
    metrics = metrics_of(tmp_path / "out")
    assert {row for row in VARIANTS if metrics["top1"][row] is None} == REAL_ROWS
    output = capsys.readouterr().out
    assert VARIANTS["fine_tuned"].label in output
    assert not any(VARIANTS[row].label in output for row in REAL_ROWS)


def test_how_steps_are_executed_is_printed_and_kept(data, tmp_path, capsys):
    assert train(tmp_path / "out", data, "--stop-after=synthesis", "--no-keep-freed-memory") == 0
    facts = metrics_of(tmp_path / "out")["execution"]
    assert facts["memory_format"] == "channels_last"
    assert facts["precision"] == "float32"
    assert not facts["keep_freed_memory"]
    first = capsys.readouterr().out.splitlines()[0]
    choices = f"execution: cpu, {torch.get_num_threads()} threads, channels_last, float32 ("
    assert first.startswith(choices)  # what follows is why it is float32
    assert first.removeprefix(choices) in (
        "fewer than 50 generator steps; fewer than 50 fine-tuning steps)",
        "the processor does not multiply bfloat16)",
    )


def test_a_profile_has_the_ops_of_every_training(run, data, tmp_path, capfd):
    arguments = ("--bits=w8a8", "--reference-data", str(data), "--profile")
    assert train(tmp_path / "out", data, *arguments) == 0
    capfd.readouterr()  # torch's profiler writes there
    assert {file.name for file in (tmp_path / "out").iterdir()} == RUN_FILES | PROFILE_FILES
    # Watching changes nothing.
    assert log_of(tmp_path / "out") == log_of(run)
    table = (tmp_path / "out" / "profile.txt").read_text()
    titles = [line for line in table.splitlines() if line.endswith(" 3 steps")]
    assert titles == ["synthesis, 3 steps", "fine_tuned, 3 steps", "real_fine_tuned, 3 steps"]
    events = json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events]
    # One optimizer step in each of the three steps of the three stages, two convolution layers
    # at least in each.
    assert sum(name == "Optimizer.step#Adam.step" for name in names) == 9
    assert sum(name == "aten::convolution" for name in names) > 18


def test_output_is_one_line_per_log_interval(data, tmp_path, capsys):
    assert train(tmp_path / "out", data, "--stop-after", "synthesis") == 0
    output = capsys.readouterr()
    counts = [line.split()[1] for line in output.out.splitlines() if line.startswith("synthesis")]
    assert counts == ["1/10", "5/10", "10/10"]
    assert output.err == ""


MODEL = """
from networks import small_residual

def build(num_classes=5):
    return small_residual(num_classes)
"""


def test_a_model_of_ones_own_without_evaluation_data(tmp_path, monkeypatch):
    (tmp_path / "model_for_training.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    size = str(RGB8.image_size)
    arguments = ["--classifier", "model_for_training:build", "--image-size", size]
    assert main([*SHORT, *arguments, "--num-classes", "4"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "model_for_training-build-w4a4-deploy-seed0"
    assert set(metrics_of(folder)["top1"].values()) == {None}
    weights = load_file(folder / "quantized.safetensors")
    assert any(value.shape[0] == 4 for value in weights.values() if value.dim())


def test_images_of_too_few_classes_are_warned_of(tmp_path, capsys):
    for number, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "tree" / name).mkdir(parents=True)
        Image.new("RGB", (9, 8), (50 * number, 0, 0)).save(tmp_path / "tree" / name / "1.png")
    folder, tree = tmp_path / "run", str(tmp_path / "tree")
    model = ["--classifier=networks:small_residual", "--num-classes=5", "--image-size=8"]
    data = ["--evaluation-data", tree, "--stop-after=synthesis", "--output", str(folder)]
    assert main([*SHORT, *model, *data]) == 0
    (warning,) = (w for w in metrics_of(folder)["warnings"] if w.startswith(tree))
    assert f"warning: {warning}\n" in capsys.readouterr().out
    assert "labels end at 2, the classifier has 5 classes" in warning


def test_the_reference_gives_the_same_run_to_float_tolerance(data, tmp_path):
    logs, agreements = {}, {}
    # Slow learning: Adam makes a step of full length even of a gradient that holds nothing but
    # rounding errors.
    rates = ["--synthesis-learning-rate=1e-5", "--fine-tuning-learning-rate=1e-5"]
    for choice in ("native", "reference"):
        folder = tmp_path / choice
        command = [sys.executable, "-W", "error", "-m", "zscgan_ext.train", *SHORT, *rates]
        # Which ranges are first is chosen by a threshold, which rounding errors can cross.
        same = ["--bits=w8a8", "--ranges=narrower"]
        arguments = [*same, "--evaluation-data", str(data), "--output", str(folder)]
        environment = {**os.environ, "ZSCGAN_EXT_IMPL": choice}
        subprocess.run([*command, *arguments], check=True, env=environment, capture_output=True)
        logs[choice] = log_of(folder)
        agreements[choice] = metrics_of(folder)["agreement"]
    for native, reference in zip(logs["native"], logs["reference"], strict=True):
        # In fine-tuning, a rounding error can move a value or a bias to the next integer, and at 8
        # bits such steps are all there is to the loss.
        tolerance = {"rel": 1e-3} if native["stage"] == "synthesis" else {"rel": 0.3, "abs": 1e-3}
        assert native["loss"] == pytest.approx(reference["loss"], **tolerance)
    for row in ("float", "noise_calibrated"):
        assert agreements["native"][row] == pytest.approx(agreements["reference"][row], abs=4)


@pytest.mark.cuda(emulated=False)
@pytest.mark.parametrize("scheme", ["deploy", "paper"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_run_on_a_gpu(run, data, tmp_path, scheme, precision):
    arguments = ("--device=cuda", f"--scheme={scheme}", f"--precision={precision}", "--bits=w8a8")
    assert train(tmp_path / "out", data, *arguments) == 0
    metrics = metrics_of(tmp_path / "out")
    assert metrics["device"] == "cuda:0"
    assert metrics["top1"]["float"] == pytest.approx(metrics_of(run)["top1"]["float"], abs=2)
    assert all(entry["loss"] < 100 for entry in log_of(tmp_path / "out"))


def test_losses_fall_on_the_way(run):
    losses = [entry["loss"] for entry in log_of(run) if entry["stage"] == "synthesis"]
    assert all(later < earlier for earlier, later in pairwise(losses))
