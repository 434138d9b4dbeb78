"""Images that are not square, from the command line to the files, and how their size is given."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import small_gray
from PIL import Image
from runs import TINY
from torchvision.transforms import functional as transforms

from zscgan_ext.config.configs import RunConfig
from zscgan_ext.config.values import parse_image_size
from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.__main__ import main as evaluate
from zscgan_ext.generate.__main__ import main as generate
from zscgan_ext.images.image_files import read_image
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.batch_norm_samples import drawn_input
from zscgan_ext.run_folder.finished_run import open_run
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.train import main as train

HEIGHT, WIDTH = 20, 36
OPTIONS = [f"--image-size={HEIGHT}x{WIDTH}", "--export=onnx,safetensors", "--report"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An ImageFolder tree of ten classes with two wide images each, of two sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir()
        for number, size in enumerate(((HEIGHT, WIDTH), (80, 200))):
            pixels = rng.integers(0, 256, size, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


@pytest.mark.parametrize("preset", ["default", "instant"])
def test_a_run_on_wide_images(photos, tmp_path, preset, capsys):
    tiny = TINY if preset == "default" else [*TINY[:5], "--device=cpu", "--preset=instant"]
    folder = tmp_path / "out"
    arguments = [*tiny, *OPTIONS, f"--evaluation-data={photos}", f"--output={folder}"]
    assert train(arguments) == 0
    own = f"--classifier={TINY[0].split('=')[1]}"
    run = open_run(folder, own.split("=")[1])
    assert run.classifier.preprocessing.shape == (1, HEIGHT, WIDTH)
    shape = onnx.load(folder / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [each.dim_value for each in shape][1:] == [1, HEIGHT, WIDTH]
    results = []
    for name in ("", "model.onnx", "model.safetensors"):
        file = tmp_path / "results.json"
        assert evaluate([str(folder / name), own, f"--data={photos}", f"--json={file}"]) == 0
        results.append(json.loads(file.read_text()))
    assert results[0]["images"] == 20
    assert results[0]["top1"] == results[2]["top1"]
    assert abs(results[0]["top1"] - results[1]["top1"]) <= 5  # one image, a tie
    if preset == "default":
        out = tmp_path / "images"
        assert generate([str(folder), "--count=3", "--format=png", f"--out={out}"]) == 0
        with Image.open(out / "images" / "generated-000000.png") as image:
            assert image.size == (WIDTH, HEIGHT)
    capsys.readouterr()


def test_spectrograms_of_one_channel_in_decibels(tmp_path):
    """A mean of 1 and a deviation of 1/80 turn pixels from 0 to 1 into -80 to 0."""
    folder = tmp_path / "out"
    tiny = [word for word in TINY if not word.startswith(("--image-size", "--mean", "--std"))]
    options = ["--image-size=40x101", "--mean=1", "--std=0.0125", "--bits=w8a8"]
    assert train([*tiny, *options, "--export=onnx,safetensors", f"--output={folder}"]) == 0
    assert generate([str(folder), "--count=20", f"--out={tmp_path / 'images'}"]) == 0
    images = np.load(tmp_path / "images" / "images.npy")
    assert images.shape == (20, 1, 40, 101)
    assert -80 <= images.min() < -60
    assert -20 < images.max() <= 0
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(None, {"images": images})
    expected = small_gray()(torch.from_numpy(images)).numpy()
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_a_program_of_wide_images(tmp_path):
    program = tmp_path / "wide.pt2"
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    images = torch.zeros(2, 1, HEIGHT, WIDTH)
    torch.export.save(
        torch.export.export(small_gray().eval(), (images,), dynamic_shapes=shapes), program
    )
    arguments = [f"--classifier={program}", "--preset=instant", "--device=cpu", "--no-report"]
    assert train([*arguments, f"--output={tmp_path / 'out'}"]) == 0
    shape = open_run(tmp_path / "out", str(program)).classifier.preprocessing.shape
    assert shape == (1, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("size", "resized"), [((80, 200), (23, 57)), ((200, 80), (102, 41)), ((20, 35), (23, 40))]
)
def test_pictures_are_cropped_without_a_change_of_their_proportions(tmp_path, size, resized):
    """256/224 of 20x36 are 23x41, which the resized picture covers."""
    pixels = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", Preprocessing(1, (HEIGHT, WIDTH), (0.5,), (0.5,)))
    if size == (20, 35):
        resized = (23, 41) if 20 * 41 > 23 * 35 else resized
    picture = transforms.resize(Image.fromarray(pixels), list(resized))
    expected = transforms.pil_to_tensor(transforms.center_crop(picture, [HEIGHT, WIDTH]))
    assert torch.equal(read, expected)


@pytest.mark.parametrize("shape", [(1, 40, 101), (3, 8, 300), (2, 7, 7), (1, 1, 64), (3, 96, 192)])
def test_a_generator_makes_images_of_any_shape(shape):
    channels, height, width = shape
    preprocessing = Preprocessing(channels, (height, width), (0.5,) * channels, (0.5,) * channels)
    generator = ConditionalGenerator(3, 4, preprocessing)
    images = generator(*generator.random_inputs(4, torch.Generator().manual_seed(0)))
    assert images.shape == (4, *shape)
    drawn = drawn_input(preprocessing, torch.Generator().manual_seed(0))
    assert drawn.shape[1:] == shape
    assert drawn.isfinite().all()


def test_a_square_is_one_number_however_it_is_given():
    assert parse_image_size("96x192") == (96, 192)
    assert parse_image_size("96x96") == parse_image_size("96") == parse_image_size(96) == 96
    config = RunConfig().changed(image_size="96x192")
    assert parse_image_size(config.image_size) == (96, 192)


@pytest.mark.parametrize("text", ["96x", "x96", "96*192", "96x192x3", "0x5", "-1x5", "5000x5", "a"])
def test_sizes_that_are_none_are_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"^image_size: expected .*, got") as raised:
        RunConfig().changed(image_size=text)
    assert text in str(raised.value)
