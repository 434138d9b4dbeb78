"""Run folders of somebody else: they run no code, and whatever their files hold gives one line."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import TINY, write_fashion_mnist
from safetensors.torch import save_file

from zscgan_ext.evaluate.__main__ import main as evaluate
from zscgan_ext.export.__main__ import main as export
from zscgan_ext.report.__main__ import main as report
from zscgan_ext.train import main as train

BUNDLED = [
    *("--synthesis-steps=2", "--fine-tuning-steps=1", "--calibration-batches=1"),
    *("--batch-size=8", "--fine-tuning-batch-size=8", "--latent-dim=4", "--log-interval=1"),
    *("--device=cpu", "--no-report", "--export=safetensors"),
]
CODE = "Path = __import__('os').mkdir('code_ran')\n"
PROGRAMS = {
    "evaluate": lambda run, *more: evaluate([run, "--data", "images", *more]),
    "report": lambda run, *more: report([run, *more]),
    "export": lambda run, *more: export([run, "--formats", "safetensors", *more]),
    "resume": lambda run, *more: train([f"--resume={run}", *more]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a bundled classifier."""
    folder = tmp_path_factory.mktemp("others")
    images = write_fashion_mnist(folder / "images", count=20)
    assert train([*BUNDLED, f"--output={folder / 'run'}", f"--evaluation-data={images}"]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of that run; its folder is the current one."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def change_config(run, **changes):
    config = run / "config.yaml"
    lines = [
        line for line in config.read_text().splitlines() if line.partition(":")[0] not in changes
    ]
    config.write_text("\n".join([*lines, *(f"{k}: {v}" for k, v in changes.items()), ""]))


def one_line(capfd):
    output = capfd.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("error: "), line
    assert len(line) < 3000
    return line


@pytest.mark.parametrize("name", ["stranger:build", "stranger.pt2", "./stranger.pt2"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_folder_decides_of_no_code(run, capfd, program, name):
    Path("stranger.py").write_text(CODE)
    Path("stranger.pt2").write_text(CODE)
    change_config(run, classifier=name)
    assert PROGRAMS[program]("run") == 2
    line = one_line(capfd)
    assert f"names '{name}', which is of no library; if you trust its code, give it" in line
    assert not os.path.exists("code_ran")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_the_user_names_is_run(run, capfd, program):
    """The same folder, where the user gives the name: its code runs, so that above could too."""
    Path("stranger_named.py").write_text("raise RuntimeError('it ran')\n")
    change_config(run, classifier="stranger_named:build")
    assert PROGRAMS[program]("run", "--classifier", "stranger_named:build") == 2
    assert "raised RuntimeError: it ran" in one_line(capfd)


def test_a_run_of_ones_own_classifier_goes_on_where_it_is_named(tmp_path, capfd):
    assert train([*TINY, f"--output={tmp_path}", "--stop-after=synthesis"]) == 0
    capfd.readouterr()
    assert train([f"--resume={tmp_path}"]) == 2
    assert "give it yourself as --classifier" in one_line(capfd)
    assert train([f"--resume={tmp_path}", "--classifier=networks:small_gray"]) == 0


def deep(name):
    return lambda run: (run / name).write_text("[" * 100_000)


def text(name, content):
    return lambda run: (run / name).write_text(content)


def metric(**changes):
    """Replace or delete entries of metrics.json."""

    def write(run):
        metrics = json.loads((run / "metrics.json").read_text()) | changes
        kept = {name: value for name, value in metrics.items() if value is not ...}
        (run / "metrics.json").write_text(json.dumps(kept))

    return write


def nested(outer, **changes):
    def write(run):
        metrics = json.loads((run / "metrics.json").read_text())
        metrics[outer] |= changes
        (run / "metrics.json").write_text(json.dumps(metrics))

    return write


def diverse(**changes):
    def write(run):
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["diversity"]["generated"] |= changes
        (run / "metrics.json").write_text(json.dumps(metrics))

    return write


def log_line(line):
    def write(run):
        with (run / "metrics.jsonl").open("a") as log:
            log.write(line + "\n")

    return write


def predictions(**tensors):
    return lambda run: save_file(tensors, run / "predictions.safetensors")


def pipe(name):
    def write(run):
        (run / name).unlink()
        os.mkfifo(run / name)

    return write


def device(name):
    def write(run):
        (run / name).unlink()
        (run / name).symlink_to("/dev/zero")

    return write


INTS = torch.zeros(20, dtype=torch.int32)
# What spoils a run: how, and what the line of `report` says.
DAMAGED = {
    "metrics empty": (text("metrics.json", ""), "metrics.json: is not JSON"),
    "metrics {}": (text("metrics.json", "{}"), "metrics.json: lacks classifier"),
    "metrics list": (text("metrics.json", "[]"), "expected a mapping.*got a list of 0"),
    "metrics nested": (deep("metrics.json"), "metrics.json: is nested too deeply"),
    "metrics not UTF-8": (
        lambda run: (run / "metrics.json").write_bytes(b"\xff{"),
        "metrics.json: is not JSON",
    ),
    "top1 a list": (metric(top1=[1]), "top1: expected a mapping.*got a list of 1"),
    "top1 of lists": (nested("top1", float=[1]), "top1.float: expected a finite.*got a list of 1"),
    "top1 empty": (metric(top1={}), "top1: lacks float"),
    "top1 of one": (nested("top1", float=None), "has only one of float and (instant|fine_tuned)"),
    "top1 above 100": (nested("top1", float=1e9), "expected a finite number from 0 to 100"),
    "top1 NaN": (nested("top1", float=float("nan")), "top1.float: expected a finite.*got nan"),
    "agreement gone": (metric(agreement={}), "agreement: lacks "),
    "no seconds": (metric(seconds={}), "seconds: lacks total"),
    "seconds text": (nested("seconds", total="long"), "seconds.total: expected a.*got 'long'"),
    "formula as a stage": (nested("seconds", **{r"$\frac{$": 1}), "expected a name of letters"),
    "bits 4.0": (
        metric(bits={"weights": 4.0, "activations": 4}),
        "bits.weights: expected .*got 4.0",
    ),
    "bits true": (
        metric(bits={"weights": True, "activations": 4}),
        "bits.weights: expected .*got True",
    ),
    "seed of many digits": (
        lambda run: text("metrics.json", '{"seed": ' + "9" * 5000 + "}")(run),
        "is not JSON",
    ),
    "memory a text": (metric(peak_memory_bytes="x"), "peak_memory_bytes: expected .*got 'x'"),
    "execution a list": (metric(execution=[]), "execution: expected a mapping.*got a list of 0"),
    "commit a number": (metric(commit=7), "commit: expected text.*got 7"),
    "ranges": (metric(first_ranges={"fine_tuned": 1}), "first_ranges.fine_tuned: expected .*got 1"),
    "choice": (metric(choice={"chosen": "instant"}), "choice: lacks divergence"),
    "diversity": (metric(diversity=[1]), "diversity: expected a mapping.*got a list of 1"),
    "classes beyond": (diverse(classes=[999]), "has other classes than the 10"),
    "spread short": (diverse(spread=[]), "has other numbers of classes and of values"),
    "histogram": (
        diverse(confidence_histogram=["x"] * 10),
        "confidence_histogram.0: expected .*got 'x'",
    ),
    "log a number": (log_line("1"), r"metrics.jsonl: line \d+: expected a mapping.*got 1"),
    "log without stage": (log_line('{"step": 1}'), r"line \d+: lacks stage"),
    "log step text": (
        log_line('{"stage": "a", "step": "x"}'),
        r"step: expected an integer.*got 'x'",
    ),
    "log of a formula": (
        log_line(r'{"stage": "a", "step": 1, "$\\frac{$": 1}'),
        "expected a name of letters",
    ),
    "log loss a list": (
        log_line('{"stage": "a", "step": 1, "loss": []}'),
        "loss: .*got a list of 0",
    ),
    "log nested": (log_line("[" * 10_000), r"line \d+: is nested too deeply"),
    "log cut off": (log_line('{"stage": "a", "st'), r"line \d+: is not JSON"),
    "export {}": (text("export.json", "{}"), "export.json: lacks bytes"),
    "export list": (text("export.json", "[[[["), "export.json: is not JSON"),
    "export bytes": (
        text("export.json", '{"bytes": {"onnx": 1.5}}'),
        "bytes.onnx: expected .*got 1.5",
    ),
    "predictions empty": (predictions(), "predictions.safetensors: cannot be read as predictions"),
    "predictions float": (predictions(float=INTS.float(), fine_tuned=INTS), "float is of torch.f"),
    "predictions beyond": (predictions(float=INTS + 10, fine_tuned=INTS), "has classes beyond"),
    "predictions negative": (predictions(float=INTS - 1, fine_tuned=INTS), "has classes beyond"),
    "predictions of two": (
        predictions(float=INTS[:3].clone(), instant=INTS, fine_tuned=INTS.clone()),
        "classes of 3 and of 20",
    ),
    "metrics a pipe": (pipe("metrics.json"), "metrics.json: cannot be read .Not a regular file"),
    "log a pipe": (pipe("metrics.jsonl"), "metrics.jsonl: cannot be read .Not a regular file"),
    "export a pipe": (pipe("export.json"), "export.json: cannot be read .Not a regular file"),
    "predictions a pipe": (pipe("predictions.safetensors"), "Not a regular file"),
    "config a pipe": (pipe("config.yaml"), "lacks config.yaml"),
    "student a pipe": (pipe("quantized.safetensors"), "lacks quantized.safetensors"),
    "metrics a device": (device("metrics.json"), "metrics.json: cannot be read .Not a regular"),
    "log a device": (device("metrics.jsonl"), "metrics.jsonl: cannot be read .Not a regular"),
    "seed of config": (
        lambda run: change_config(run, seed="9" * 5000),
        "config.yaml is not valid YAML|seed",
    ),
    "images huge": (
        lambda run: change_config(run, image_size=4096),
        "accepted from a file are 67,108,864",
    ),
    "latent vectors huge": (
        lambda run: change_config(run, latent_dim=1 << 20),
        "too few for the [0-9,]+ weights of a generator with latent_dim 1048576",
    ),
    "another classifier": (
        lambda run: change_config(run, classifier="torchvision:vgg16", num_classes=1000),
        "too few for the 138,357,544 weights of torchvision:vgg16",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_gives_one_line(run, capfd, spoil, message):
    spoil(run)
    assert report(["run"]) == 2
    line = one_line(capfd)
    assert re.search(message, line), line
    assert not (run / "report.html").exists()


def test_the_run_that_is_spoiled_has_a_report(run):
    assert report(["run"]) == 0
    assert (run / "report.html").exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_config_has_to_be_a_regular_file(run, capfd, name):
    pipe(name)(run)
    assert train(["--config", str(run / name)]) == 2
    assert "cannot be read (Not a regular file)" in one_line(capfd)


def test_a_checkpoint_has_to_be_a_regular_file(run, capfd):
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    os.mkfifo(folder / f"000001-{'0' * 16}.safetensors")
    assert train(["--resume=run"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert "cannot be read (Not a regular file)" in lines[0]
    assert "expected a whole checkpoint in run, all are damaged" in lines[1]


def test_pairs_of_classes_take_memory_by_the_images():
    """21,000 classes have 441 million pairs; of 50 images, 50 occur at most."""
    from zscgan_ext.report.measurements import Change, most_frequent_changes

    random = np.random.default_rng(0)
    before = torch.from_numpy(random.integers(0, 21_000, 50))
    after = before.clone()
    after[:3] = torch.tensor([20_999, 20_999, 0])
    before[:3] = torch.tensor([20_998, 20_998, 1])
    assert most_frequent_changes(before, after, 1) == [Change(20_998, 20_999, 2)]
