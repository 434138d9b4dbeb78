"""Names of files that are bytes and no text: folders of old archives, on systems of other times."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from networks import small_gray
from PIL import Image
from runs import TINY
from safetensors.torch import save

from zscgan_ext import load_quantized
from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.evaluate.__main__ import main as evaluate
from zscgan_ext.export.__main__ import main as export
from zscgan_ext.images.datasets import open_images
from zscgan_ext.report.__main__ import main as report
from zscgan_ext.train import main

NAME = os.fsdecode(b"f\xe9t\xff")  # neither UTF-8 nor without umlauts


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of such a name, with images under such names, that is the current one."""
    folder = tmp_path / NAME
    for label in range(10):
        (folder / "photos" / f"{NAME}{label}").mkdir(parents=True)
        for number in range(2):
            file = folder / "photos" / f"{NAME}{label}" / f"{NAME}{number}.png"
            with file.open("wb") as stream:
                Image.new("L", (28, 28), 20 * label).save(stream, "PNG")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


def test_a_run_from_and_to_such_names(place, capfd):
    (place / "photos").rename(place / f"photos{NAME}")
    weights = Path(f"{NAME}.safetensors")
    weights.write_bytes(save(small_gray().state_dict()))
    Path(f"{NAME}.yaml").write_text("seed: 3\n")
    images, output = f"photos{NAME}", f"run{NAME}"
    arguments = [
        *(*TINY, "--report", "--export=onnx,safetensors", "--evaluation-data", images),
        *("--reference-data", images, "--weights", str(weights), "--config", f"{NAME}.yaml"),
        *("--tensorboard", "--profile", "--checkpoint-every=3", "--output", output),
    ]
    assert main(arguments) == 0
    printed = capfd.readouterr().out
    assert "results in runf\\udce9t\\udcff" in printed
    folder = Path(output)
    assert yaml.safe_load((folder / "config.yaml").read_text("utf-8"))["evaluation_data"] == images
    assert json.loads((folder / "metrics.json").read_text("utf-8"))["seed"] == 3
    page = (folder / "report.html").read_text("utf-8")
    assert "photosf\\udce9t\\udcff" in page
    assert re.search("[\ud800-\udfff]", page) is None
    # All that reads a run finds what it names.
    own = ["--classifier", "networks:small_gray"]
    assert report([output, *own]) == 0
    assert export([output, *own, "--formats", "safetensors"]) == 0
    for file in (output, f"{output}/model.onnx"):
        assert evaluate([file, *own, "--data", images, "--json", f"{NAME}.json"]) == 0
    quantized = load_quantized(f"{output}/model.safetensors", "networks:small_gray")
    assert quantized(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    again = [*TINY, "--resume", output, "--export=none"]
    assert main(again) in (0, 2)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_under_such_names(place, suffix):
    file, state = Path(NAME + suffix), small_gray().state_dict()
    if suffix == ".pth":
        with file.open("wb") as stream:
            torch.save(state, stream)
    else:
        file.write_bytes(save(state))
    model = load_classifier(small_gray(), file, image_size=28).model
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


def test_a_program_under_such_a_name(place):
    model = small_gray()
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=dynamic)
    torch.export.save(program, "plain.pt2")
    Path("plain.pt2").rename(f"{NAME}.pt2")
    classifier = load_classifier(f"{NAME}.pt2")
    images = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(classifier.model(images), model(images))
    small = [*TINY[3:], "--export=onnx,safetensors", "--report", "--output=run"]
    assert main(["--classifier", f"{NAME}.pt2", "--mean=0.5", *small]) == 0
    assert load_quantized("run/model.safetensors", f"{NAME}.pt2")(images).shape == (3, 10)


def test_an_image_that_is_none_is_named(place, capfd):
    Path("photos", f"{NAME}3", f"{NAME}0.png").write_bytes(b"no image")
    preprocessing = load_classifier(small_gray(), image_size=28).preprocessing
    data = open_images("photos", "test", preprocessing)
    arguments = [*TINY, "--evaluation-data", "photos", "--output", NAME]
    assert len(data) == 20
    assert main(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: photos/f\\udce9t\\udcff3/f\\udce9t\\udcff0.png: cannot be read")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--evaluation-data", f"missing{NAME}"],
        ["--weights", f"missing{NAME}.pth"],
        ["--config", f"missing{NAME}.yaml"],
        ["--resume", f"missing{NAME}"],
        ["--classifier", f"missing{NAME}.pt2"],
        ["--classifier", f"missing{NAME}:model"],
        ["--classifier", f"torchvision:{NAME}"],
        ["--classifier", f"timm:{NAME}"],
        ["--classifier", NAME],
        [f"--{NAME}"],
        ["--bits", NAME],
        ["--device", NAME],
        ["--preset", NAME],
        ["--seed", NAME],
    ],
)
def test_what_is_missing_gives_one_line(place, arguments, capfd):
    assert main([*TINY, *arguments, "--output", NAME]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "f\\udce9t\\udcff" in line
