"""Bad input ends the main program with one line and exit code 2, before anything is written."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from networks import SmallResidual
from runs import SHORT, write_fashion_mnist
from safetensors.torch import save_file

from zscgan_ext.train import main
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS
from zscgan_ext.zoo.resnet20 import ResNet20

MODELS = """
from networks import small_residual
from torch import nn

def good():
    return small_residual()

def without_batch_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def of_one_size():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, 5)
    )

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.bn(self.conv(x)).mean((2, 3))
        return x if x.sum() > 0 else -x

def failing():
    raise RuntimeError("no such checkpoint\\non two lines")
"""

# What a run writes before it measures or learns anything.
FIRST_FILES = {
    *("run-files.txt", "config.yaml", "quantized.safetensors", "instant.safetensors"),
    *("model.safetensors", "export.json"),
}


class Exploit:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with good and bad files, where the program is started."""
    folder = tmp_path_factory.mktemp("errors")
    (folder / "models_with_faults.py").write_text(MODELS)
    state = BUNDLED_CLASSIFIERS["resnet20"].weights.read_bytes()
    (folder / "truncated.safetensors").write_bytes(state[:-1000])
    (folder / "empty.safetensors").touch()
    with (folder / "pickled.pt").open("wb") as stream:
        pickle.dump({"conv1.weight": Exploit()}, stream)
    wrong = ResNet20(num_classes=7).state_dict()
    save_file(wrong, folder / "wrong_shape.safetensors")
    save_file(SmallResidual().state_dict(), folder / "other_model.safetensors")
    damaged = ResNet20().state_dict()
    damaged["conv1.weight"].fill_(torch.nan)
    save_file(damaged, folder / "not_a_number.safetensors")
    (folder / "unknown.yaml").write_text("sede: 3\n")
    (folder / "broken.yaml").write_text("seed: [3\n")
    (folder / "typed.yaml").write_text("seed: many\n")
    (folder / "file").touch()
    (folder / "held").mkdir()
    (folder / "held" / "config.yaml").write_text("seed: 0\n")
    write_fashion_mnist(folder / "idx", count=3)
    (folder / "nothing").mkdir()
    return folder


def snapshot(folder):
    files = (file for file in folder.rglob("*") if "__pycache__" not in file.parts)
    return {str(file): file.read_bytes() if file.is_file() else None for file in files}


CASES = {
    "unknown classifier": (
        "--classifier resnet21",
        r"classifier: unknown 'resnet21', did you mean resnet20\?",
    ),
    "unknown module": ("--classifier nowhere.models:build", "classifier: .*nowhere.models"),
    "unknown function": ("--classifier models_with_faults:bulid", "classifier: .*bulid"),
    "function that fails": (
        "--classifier models_with_faults:failing",
        "classifier: .*RuntimeError: no such checkpoint$",
    ),
    "missing weights": ("--weights gone.safetensors", "weights: gone.safetensors cannot be read"),
    "empty weights": ("--weights empty.safetensors", "weights: empty.safetensors is empty"),
    "truncated weights": (
        "--weights truncated.safetensors",
        "weights: truncated.safetensors is truncated or not a safetensors file",
    ),
    "weights of another shape": (
        "--weights wrong_shape.safetensors",
        r"weights: wrong_shape.safetensors: expected fc.bias of shape \(10,\), got \(7,\)",
    ),
    "weights of another model": (
        "--weights other_model.safetensors",
        "weights: other_model.safetensors lacks conv1.weight",
    ),
    "weights that are no numbers": (
        "--weights not_a_number.safetensors",
        "weights: not_a_number.safetensors has NaN or infinite values in conv1.weight",
    ),
    "pickled weights": ("--weights pickled.pt", "weights: pickled.pt holds pickled code"),
    "no batch norm": (
        "--classifier models_with_faults:without_batch_norm",
        "classifier: needs at least one BatchNorm layer",
    ),
    "no graph": (
        "--classifier models_with_faults:Branching",
        "classifier: torch.fx cannot trace it",
    ),
    "image size": (
        "--classifier models_with_faults:of_one_size --image-size 16",
        "image_size: models_with_faults:of_one_size cannot take 16x16 images",
    ),
    "number of classes": ("--num-classes 7", "num_classes: 7, but resnet20 gives 10 logits"),
    "mean": ("--mean 0.5 0.5 0.5", r"mean: 3 value\(s\), the classifier has 1"),
    "std of zero": ("--std 0", "std: expected numbers above 0, got 0.0"),
    "one bit": ("--bits w1a4", "bits: expected w2a2 to w8a8, .* got 'w1a4'"),
    "nine bits": ("--bits w4a9", "bits: expected w2a2 to w8a8, .* got 'w4a9'"),
    "bits without a letter": ("--bits 4", "bits: expected w2a2 to w8a8, .* got '4'"),
    "scheme": ("--scheme int8", "argument --scheme: invalid choice: 'int8'"),
    "type of a number": ("--seed many", "argument --seed: invalid int value: 'many'"),
    "format of export": (
        "--export safetensor",
        r"export: expected onnx, .* got 'safetensor', did you mean safetensors\?",
    ),
    "steps": ("--synthesis-steps 0", "synthesis_steps: expected a number above 0, got 0"),
    "infinite rate": (
        "--fine-tuning-learning-rate inf",
        "fine_tuning_learning_rate: expected a finite number, got inf",
    ),
    "unknown argument": ("--bit w4a4", r"unknown argument --bit, did you mean --bits.*\?"),
    "unknown setting": ("--config unknown.yaml", "config: unknown.yaml has an unknown setting"),
    "broken YAML": ("--config broken.yaml", "config: broken.yaml is not valid YAML"),
    "type in YAML": ("--config typed.yaml", "argument --seed: invalid int value: 'many'"),
    "missing YAML": ("--config gone.yaml", "config: gone.yaml cannot be read"),
    "device that does not exist": (
        "--device cuda:99",
        "device: torch finds .* CUDA.*, got 'cuda:99'",
    ),
    "device of another kind": ("--device tpu", "device: expected auto, cpu, cuda .* got 'tpu'"),
    "output is a file": ("--output file", "output: expected a folder, file is a file"),
    "output below a file": ("--output file/run", "output: file/run cannot be written"),
    "output that no one can write": ("--output /proc/run", "output: /proc/run cannot be written"),
    "output that holds a run": ("--output held", "output: held already holds a run; give --over"),
    "missing evaluation data": ("--evaluation-data gone", "gone: no such folder"),
    "empty evaluation data": ("--evaluation-data nothing", "nothing: not an ImageFolder tree"),
    "evaluation data of another shape": (
        "--classifier models_with_faults:good --image-size 8 --evaluation-data idx",
        r"idx: holds images of shape \(3, 1, 28, 28\), the classifier takes \('N', 3, 8, 8\)",
    ),
    "reference data without a training split": (
        "--reference-data idx",
        "idx: holds neither train-images-idx3-ubyte",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES)
def test_one_line_and_nothing_written(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    before = snapshot(folder)
    assert main([*SHORT, *arguments.split()]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert re.match(f"error: {message}", line), line
    assert snapshot(folder) == before


def test_cuda_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: device: torch finds no CUDA device(s), got 'cuda'\n"


def test_labels_that_the_classifier_lacks(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    model = ["--classifier", "models_with_faults:good", "--image-size", "28"]
    for label in range(7):
        (folder / "tree" / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / "tree" / str(label) / "1.png").touch()
    before = snapshot(folder)
    assert main([*SHORT, *model, "--evaluation-data", "tree"]) == 2
    assert capsys.readouterr().err == (
        "error: tree: holds 7 class folders, the classifier has 5 classes; give the folder that "
        "holds a folder for each of them and no other\n"
    )
    assert snapshot(folder) == before


def test_an_image_that_cannot_be_read_keeps_what_is_there(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(folder)
    (tmp_path / "tree" / "0").mkdir(parents=True)
    (tmp_path / "tree" / "0" / "1.png").write_bytes(b"not a picture")
    arguments = ["--classifier", "models_with_faults:good", "--image-size", "8"]
    data = ["--evaluation-data", str(tmp_path / "tree"), "--output", str(tmp_path / "run")]
    assert main([*SHORT, *arguments, *data]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/tree/0/1.png: cannot be read as an image")
    assert {file.name for file in (tmp_path / "run").iterdir()} == FIRST_FILES


def test_as_a_program_there_is_no_traceback(folder):
    command = [sys.executable, "-m", "zscgan_ext.train", "--classifier", "resnet21"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: classifier: unknown 'resnet21'")
    assert done.stderr.count("\n") == 1


# Tests that a shell runs in the background inherit that interrupts are ignored.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from zscgan_ext.train import main
sys.exit(main())
"""


def wait_for(file, process):
    """Wait until a program that is running has written a file."""
    end = time.monotonic() + 60
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the program wrote nothing for a minute"
        time.sleep(0.05)


def test_an_interrupt_keeps_what_is_there_and_writes_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-c", INTERRUPTIBLE, "--synthesis-steps", "1000000"]
    process = subprocess.Popen(
        [*command, "--batch-size", "8", "--output", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(run / "metrics.jsonl", process)
    wait_for(run / "samples" / "step-000001.png", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == f"stopped by SIGINT; --resume {run} resumes it\n"
    kept = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    (checkpoint,) = (run / "checkpoints").iterdir()
    learning = {"metrics.jsonl", "samples/step-000001.png", f"checkpoints/{checkpoint.name}"}
    assert kept == FIRST_FILES | learning
