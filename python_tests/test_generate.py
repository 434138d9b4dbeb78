"""The command `generate`: its formats, their labels, and what it replaces and refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image
from runs import PYTHONPATH, TINY
from torchvision.datasets import ImageFolder

import zscgan_ext
from zscgan_ext.errors import InputError
from zscgan_ext.export.onnx.model import float_model
from zscgan_ext.generate.__main__ import main as generate
from zscgan_ext.generate.image_set import class_folders
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.conversion import folded
from zscgan_ext.synthesis import labelled_images
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_file import METADATA, load_generator
from zscgan_ext.train import main as train

COUNT = 23  # of ten classes: three of some, two of others
MEAN, STD = 0.5, 0.25  # of TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that learned a generator and stopped."""
    folder = tmp_path_factory.mktemp("run") / "out"
    assert train([*TINY, "--stop-after=synthesis", f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """A folder with images of one seed in each format, and in the other units where there are."""
    parent = tmp_path_factory.mktemp("sets")
    for name in ("npy", "torch", "png", "imagefolder"):
        arguments = [str(run), f"--count={COUNT}", f"--format={name}", "--seed=3"]
        assert generate([*arguments, f"--out={parent / name}"]) == 0
    assert (
        generate([str(run), f"--count={COUNT}", "--seed=3", f"--out={parent / 'px'}", "--pixels"])
        == 0
    )
    return parent


def read_png(file):
    with Image.open(file) as image:
        return np.asarray(image)[None]  # [1, H, W]


def test_all_formats_hold_the_same_images_and_labels(written):
    normalized, labels = (np.load(written / "npy" / f"{n}.npy") for n in ("images", "labels"))
    pixels = np.load(written / "px" / "images.npy")
    assert (normalized.dtype, normalized.shape) == (np.float32, (COUNT, 1, 28, 28))
    assert (pixels.dtype, labels.dtype) == (np.uint8, np.int64)
    restored = (normalized * STD + MEAN) * 255
    assert np.abs(restored - pixels).max() <= 0.5 + 1e-3
    assert pixels.std() > 5
    loaded = torch.load(written / "torch" / "images.pt", weights_only=True, mmap=True)
    assert np.array_equal(loaded["images"].numpy(), normalized)
    assert np.array_equal(loaded["labels"].numpy(), labels)
    with (written / "png" / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert np.array_equal([read_png(written / "png" / row["file"]) for row in rows], pixels)


def test_classes_are_balanced_and_image_folders_number_them_as_the_classifier(written):
    labels = np.load(written / "npy" / "labels.npy")
    counts = np.bincount(labels, minlength=10)
    assert (counts.min(), counts.max(), counts.sum()) == (2, 3, COUNT)
    pixels = np.load(written / "px" / "images.npy")
    tree = ImageFolder(written / "imagefolder")
    assert len(tree) == COUNT
    for file, label in tree.samples:
        number = int(file.rsplit("-", 1)[1].removesuffix(".png"))
        assert label == labels[number]
        assert np.array_equal(read_png(file), pixels[number])


def test_the_metadata_say_what_the_images_are(written):
    facts = json.loads((written / "npy" / "metadata.json").read_text())
    assert facts["class_names"] == [str(i) for i in range(10)]
    assert (facts["mean"], facts["std"], facts["seed"]) == ([MEAN], [STD], 3)
    assert not facts["are_pixels"]
    assert json.loads((written / "png" / "metadata.json").read_text())["are_pixels"]


def test_a_seed_gives_the_same_images_whatever_else_draws_and_another_gives_others(
    run, monkeypatch
):
    generator = load_generator(run / "generator.safetensors").generator

    def images(seed, count=COUNT):
        state = torch.get_rng_state()
        found = [batch for batch, _ in zscgan_ext.generate_images(generator, count, seed=seed)]
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)
        return torch.cat(found)

    first = images(0)
    assert torch.equal(first, images(0))
    assert (first - images(1)).abs().mean() > 0.01
    monkeypatch.setattr(labelled_images, "AT_ONCE", 4)  # bounded memory: several batches
    sizes = [len(batch) for batch, _ in zscgan_ext.generate_images(generator, 10)]
    assert sizes == [4, 4, 2]


def test_images_are_what_the_generator_of_the_api_gives(run, written):
    generator = load_generator(run / "generator.safetensors").generator
    batches = list(zscgan_ext.generate_images(generator, COUNT, seed=3, pixels=True))
    assert np.array_equal(
        torch.cat([b for b, _ in batches]), np.load(written / "px" / "images.npy")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: expected 1 to 2,147,483,648, got 0"),
        ({"count": 2.0}, "count: expected a whole number, got a float"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"generator": "resnet20"}, "generator: expected what train_generator gave, got a str"),
    ],
)
def test_wrong_arguments_of_the_function(arguments, message):
    generator = ConditionalGenerator(2, 4, Preprocessing(1, 8, (0.5,), (0.5,)))
    given = {"generator": generator, "count": 1, **arguments}
    with pytest.raises(InputError, match=message):
        zscgan_ext.generate_images(given.pop("generator"), given.pop("count"), **given)


def test_few_images_of_many_classes_are_spread_over_them():
    assert labelled_images.balanced_labels(list(range(0, 1000, 2)), 5).tolist() == [
        *(0, 200, 400, 600, 800),
    ]


def test_folders_of_classes_are_plain_names_in_the_order_of_the_classes():
    names = ("T-shirt/top", "..", "", "a\nb", "x", "x", "6", "é" * 400, "CON", "val", "b c")
    folders = class_folders(names)
    assert folders == sorted(set(folders))
    assert folders[0] == "00_T-shirt-top"
    assert folders[1] == "01"
    assert folders[6] == "06"
    assert all("/" not in name and name.isprintable() and len(name) < 120 for name in folders)


def test_what_stands_in_the_folder_is_replaced_only_if_it_was_generated(run, tmp_path, capsys):
    out = tmp_path / "set"
    arguments = [str(run), "--count=10", "--format=imagefolder", f"--out={out}"]
    assert generate(arguments) == 0
    assert generate(arguments) == 2
    assert "already holds generated images; give --overwrite" in capsys.readouterr().err
    (out / "3" / "mine.png").write_text("kept")
    assert generate([*arguments, "--overwrite", "--format=npy"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("3", "images.npy", "labels.npy", "metadata.json", "run-files.txt"),
    ]
    assert [path.name for path in (out / "3").iterdir()] == ["mine.png"]


def test_a_folder_of_something_else_is_left_as_it_is(run, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("cat")
    for arguments in ([], ["--overwrite"]):
        assert generate([str(run), f"--out={photos}", *arguments]) == 2
        assert "photos holds cat.jpg, which generate did not write" in capsys.readouterr().err
    assert generate([str(run), f"--out={run}", "--overwrite"]) == 2
    # A list that somebody changed deletes nothing else.
    assert generate([str(run), "--count=2", f"--out={tmp_path / 'set'}"]) == 0
    with (tmp_path / "set" / "run-files.txt").open("a") as stream:
        stream.write("../photos/cat.jpg\nphotos/generated-1.png\n")
    assert generate([str(run), "--count=2", f"--out={tmp_path / 'set'}", "--overwrite"]) == 0
    assert [path.name for path in photos.iterdir()] == ["cat.jpg"]
    assert (run / "config.yaml").is_file()


def tampered(run, folder, change):
    """Return a folder with a run's generator whose metadata a function changed."""
    folder.mkdir(exist_ok=True)
    learned = run / "generator.safetensors"
    with safetensors.safe_open(learned, "pt") as stream:
        description = json.loads(stream.metadata()[METADATA])
    change(description)
    tensors = safetensors.torch.load_file(learned)
    metadata = {METADATA: json.dumps(description)} if description else {}
    safetensors.torch.save_file(tensors, folder / "generator.safetensors", metadata)
    return folder


def test_names_of_classes_that_are_no_text_are_escaped(run, tmp_path):
    names = ["\ud800", "=cmd", '"', "../x", "", "a\nb", "é", "x", "x", "y"]
    folder = tampered(run, tmp_path / "run", lambda d: d.update(class_names=names))
    assert generate([str(folder), "--count=10", "--format=png", f"--out={tmp_path / 'out'}"]) == 0
    with (tmp_path / "out" / "labels.csv").open(newline="") as stream:
        written = [row["class"] for row in csv.DictReader(stream)]
    assert written == ["\\ud800", *names[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, "does not say what it generates; train the generator again"),
        (lambda d: d["preprocessing"].update(image_size=4096), "too few for the"),
        (lambda d: d["preprocessing"].update(image_size=10**9), "image_size: expected an integer"),
        (lambda d: d.update(class_names=["x"] * 100_000), "too few for the"),
        (lambda d: d.update(class_names=[]), "names no class"),
        (lambda d: d["preprocessing"].update(std=[0]), "standard deviation"),
        (
            lambda d: d["preprocessing"].update(channels=3, mean=[0.5] * 3, std=[1] * 3),
            "wrong shapes in all",
        ),
    ],
)
def test_a_generator_that_says_something_else_is_refused(run, tmp_path, capsys, change, message):
    folder = tampered(run, tmp_path / "run", change)
    assert generate([str(folder), "--count=1", f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count=0"], "count: expected 1 to"),
        (["--count=x"], "invalid int value"),
        (["--format=jpeg"], "invalid choice: 'jpeg'"),
        (["--format=png", "--normalized"], "normalized: png files hold pixels"),
        (["--pixels", "--normalized"], "not allowed with"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, arguments, message):
    assert generate([str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_a_generator_is_refused(tmp_path, capsys):
    assert generate([str(tmp_path)]) == 2
    assert "lacks generator.safetensors" in capsys.readouterr().err


def test_images_of_two_channels_are_no_png_files(tmp_path, capsys):
    generator = ConditionalGenerator(2, 4, Preprocessing(2, 8, (0.5,) * 2, (0.5,) * 2))
    description = {
        "classifier": "any",
        "latent_dim": 4,
        "class_names": ["a", "b"],
        "preprocessing": {"channels": 2, "image_size": 8, "mean": [0.5] * 2, "std": [0.5] * 2},
    }
    metadata = {METADATA: json.dumps(description)}
    safetensors.torch.save_file(
        generator.state_dict(), tmp_path / "generator.safetensors", metadata
    )
    out = tmp_path / "out"
    assert generate([str(tmp_path), "--format=png", f"--out={out}"]) == 2
    assert "expected npy or torch for images of 2 channels" in capsys.readouterr().err
    assert generate([str(tmp_path), "--count=3", f"--out={out}"]) == 0
    assert np.load(out / "images.npy").shape == (3, 2, 8, 8)


def test_the_example_calibrates_onnxruntimes_quantizer(written, tmp_path):
    """Its first range is that of the images, and its answers are nearly the float model's."""
    classifier = zscgan_ext.load_classifier(
        "networks:small_gray", mean=[MEAN], std=[STD], image_size=28
    )
    graph = folded(classifier.model, classifier.preprocessing.shape)
    files = [tmp_path / "float.onnx", written / "npy" / "images.npy", tmp_path / "int8.onnx"]
    files[0].write_bytes(float_model(graph, classifier).SerializeToString())
    script = Path(__file__).parents[1] / "examples" / "quantize_with_onnxruntime.py"
    command = [sys.executable, str(script), *map(str, files)]
    environment = {"PYTHONPATH": PYTHONPATH, "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    images = np.load(files[1])
    model = onnx.load(files[2])
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    values = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    assert first.input[0] == "images"
    low, high = min(images.min(), 0), max(images.max(), 0)
    assert values[first.input[1]] * 255 == pytest.approx(high - low, rel=1e-4)
    logits = [onnxruntime.InferenceSession(f).run(None, {"images": images})[0] for f in files[::2]]
    assert np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[0]).max()
    assert not np.array_equal(*logits)
