"""Files that take pictures: the same answers as for normalized images, from any size on."""

import runpy
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import small_residual
from PIL import Image

import zscgan_ext
from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.evaluation import open_target
from zscgan_ext.export.onnx.pixel_input import takes_pixels
from zscgan_ext.images.image_files import read_image
from zscgan_ext.images.preprocessing import Preprocessing

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def classifier():
    return zscgan_ext.load_classifier(
        small_residual(), image_size=20, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
    )


@pytest.fixture(scope="module")
def student(classifier):
    return zscgan_ext.quantize(classifier, bits="w8a8")


def session_of(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx")


@pytest.fixture(scope="module")
def resizing(classifier, student, tmp_path_factory):
    """The folder of a file that takes pictures of any size."""
    folder = tmp_path_factory.mktemp("resizing")
    zscgan_ext.export(classifier, student, None, folder, ["onnx"], input="uint8", resize_input=True)
    return folder


@pytest.fixture(scope="module")
def usual(classifier, student, tmp_path_factory):
    """A file of normalized images, which is proved elsewhere."""
    folder = tmp_path_factory.mktemp("usual")
    zscgan_ext.export(classifier, student, None, folder, ["onnx"])
    return session_of(folder)


def normalized(classifier, pixels):
    return classifier.preprocessing.normalize(pixels).numpy()


@pytest.mark.parametrize(("form", "order"), [("uint8", (0, 2, 3, 1)), ("uint8-nchw", (0, 1, 2, 3))])
def test_pixels_give_the_logits_of_normalized_images(
    form, order, classifier, student, usual, tmp_path
):
    report = zscgan_ext.export(classifier, student, None, tmp_path, ["onnx"], input=form)
    assert report["input"] == form
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (6, 3, 20, 20), generator=rng).to(torch.uint8)
    (found,) = session_of(tmp_path).run(None, {"images": pixels.permute(order).numpy()})
    (expected,) = usual.run(None, {"images": normalized(classifier, pixels)})
    assert np.array_equal(found, expected)
    answers = open_target(tmp_path / "model.onnx", None).model
    again = answers(torch.from_numpy(normalized(classifier, pixels)))
    assert np.array_equal(again.numpy(), expected)


@pytest.mark.parametrize("size", [(20, 20), (37, 52), (64, 30), (20, 33), (15, 18)])
def test_pictures_of_any_size_are_resized_as_evaluate_does(
    size, classifier, resizing, usual, tmp_path
):
    height, width = size
    # Noise: of what is smooth, all ways of resizing make nearly the same.
    picture = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    read = read_image(tmp_path / "picture.png", classifier.preprocessing)
    probe = onnx.load(resizing / "model.onnx")
    probe.graph.output.append(onnx.helper.make_empty_tensor_value_info("preprocessing/cropped"))
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    logits, cropped = session.run(None, {"images": picture[None]})
    difference = np.abs(cropped[0] - read.numpy())
    # Either rounds to whole levels, twice; versions of Pillow begin with rows or with columns.
    assert difference.max() <= (0 if size == (20, 20) else 1)
    pixels = torch.from_numpy(cropped.astype(np.uint8))
    assert np.array_equal(logits, usual.run(None, {"images": normalized(classifier, pixels)})[0])


@pytest.mark.parametrize("size", [(12, 20), (40, 40), (30, 70), (90, 31), (7, 9)])
def test_images_that_are_not_square_are_resized_alike(size, tmp_path):
    height, width = size
    # Noise: of what is smooth, all ways of resizing make nearly the same.
    picture = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    preprocessing = Preprocessing(3, (12, 20), (0.0,) * 3, (1.0,) * 3)
    read = read_image(tmp_path / "picture.png", preprocessing)
    images, same = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, 12, 20])
        for name in ("images", "logits")
    )
    node = onnx.helper.make_node("Identity", ["images"], ["logits"])
    graph = onnx.helper.make_graph([node], "nothing", [images], [same])
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    file = takes_pixels(model, preprocessing, "uint8", resizes=True).SerializeToString()
    (found,) = onnxruntime.InferenceSession(file).run(None, {"images": picture[None]})
    difference = np.abs(found[0] * 255 - read.numpy())
    assert difference.max() <= (1e-3 if size == (12, 20) else 1.001)


def test_the_example_names_the_class(classifier, resizing, usual, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    low = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    low.resize((50, 40)).save(tmp_path / "picture.jpg")
    script = ROOT / "examples" / "classify_picture.py"
    arguments = [str(script), str(resizing / "model.onnx"), str(tmp_path / "picture.jpg")]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(script), run_name="__main__")
    read = read_image(tmp_path / "picture.jpg", classifier.preprocessing)[None]
    (logits,) = usual.run(None, {"images": normalized(classifier, read)})
    assert capsys.readouterr().out.strip() == classifier.class_names[logits[0].argmax()]
    assert len([line for line in script.read_text().splitlines() if line]) <= 12


def test_what_a_file_takes_is_checked(classifier, student, tmp_path):
    with pytest.raises(InputError, match="input: expected one of float32, uint8, uint8-nchw"):
        zscgan_ext.export(classifier, student, None, tmp_path, ["onnx"], input="int8")
    with pytest.raises(InputError, match="resize_input: needs input uint8 or uint8-nchw"):
        zscgan_ext.export(classifier, student, None, tmp_path, ["onnx"], resize_input=True)
