"""Labelled images from idx files and ImageFolder trees."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from zscgan_ext.errors import InputError
from zscgan_ext.images import datasets
from zscgan_ext.images.datasets import check_labels, few_labels_warnings, open_images
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

RGB16 = Preprocessing(3, 16, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
GRAY4 = Preprocessing(1, 4, (0.5,), (0.25,))


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, prefix: str = "t10k") -> None:
    folder.mkdir(exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())


def write_tree(folder: Path, suffix: str = ".png") -> None:
    random = np.random.default_rng(0)
    for index, (name, shape) in enumerate(
        (("cat", (20, 40, 3)), ("ant", (31, 17, 3)), ("bee", (8, 8)))
    ):
        (folder / name).mkdir(parents=True)
        for copy in range(index + 1):
            pixels = random.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{copy}{suffix}")


@pytest.fixture
def idx(tmp_path):
    images = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4)
    write_idx(tmp_path, images, np.array([0, 1, 2, 3, 0], dtype=np.uint8))
    return tmp_path


def test_bundled_fashion_mnist_is_whole():
    data = open_images("fashion-mnist", "test", FASHION_MNIST_PREPROCESSING)
    assert len(data) == 10_000
    assert data.labels.bincount().tolist() == [1000] * 10
    assert "MIT License" in (datasets.BUNDLED_FASHION_MNIST / "LICENSE").read_text()
    check_labels(data, 10)


def test_fashion_mnist_training_images_come_from_elsewhere(idx, monkeypatch, tmp_path):
    write_idx(idx, np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.uint8), "train")
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", idx)
    assert len(open_images("fashion-mnist", "train", GRAY4)) == 2
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    with pytest.raises(InputError, match="dataset-fashion-mnist"):
        open_images("fashion-mnist", "train", GRAY4)


def test_idx_batches_are_normalized_and_complete(idx):
    batches = list(open_images(str(idx), "test", GRAY4).batches(2, GRAY4))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    images = torch.cat([images for images, _ in batches])
    expected = (torch.arange(80.0).reshape(5, 1, 4, 4) / 255 - 0.5) / 0.25
    torch.testing.assert_close(images, expected)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2, 3, 0]


def test_random_batches_repeat_with_the_seed_and_keep_labels_with_images(idx):
    data = open_images(str(idx), "test", GRAY4)

    def draw(seed):
        batches = data.random_batches(50, GRAY4, torch.Generator().manual_seed(seed))
        return next(batches), next(batches)

    (images, labels), second = draw(0)
    assert torch.equal(images, draw(0)[0][0])
    assert torch.equal(second[0], draw(0)[1][0])
    assert not torch.equal(images, draw(1)[0][0])
    drawn = ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255 / 16).round().long()
    assert torch.equal(data.labels[drawn], labels)
    assert set(drawn.tolist()) == set(range(5))


def test_tree_is_read_as_torchvision_reads_it(tmp_path):
    write_tree(tmp_path)
    data = open_images(str(tmp_path), "test", RGB16)
    usual = transforms.Compose(
        [
            transforms.Resize(18),  # 16 * 256 / 224, rounded
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize(RGB16.mean, RGB16.std),
        ]
    )
    expected = ImageFolder(str(tmp_path), usual)
    images, labels = zip(*data.batches(4, RGB16), strict=True)
    assert [len(batch) for batch in labels] == [4, 2]
    torch.testing.assert_close(torch.cat(images), torch.stack([image for image, _ in expected]))
    assert torch.cat(labels).tolist() == [label for _, label in expected] == [0, 0, 1, 1, 1, 2]


def test_tree_is_read_lazily_and_drawn_at_random(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "cat" / "broken.png").write_text("not an image")
    data = open_images(str(tmp_path), "test", RGB16)
    assert next(data.batches(2, RGB16))[1].tolist() == [0, 0]
    (tmp_path / "cat" / "broken.png").unlink()
    whole = torch.cat([i for i, _ in open_images(str(tmp_path), "test", RGB16).batches(9, RGB16)])
    data = open_images(str(tmp_path), "test", RGB16)
    images, labels = next(data.random_batches(20, RGB16, torch.Generator().manual_seed(0)))
    for image, label in zip(images, labels, strict=True):
        same = (whole == image).flatten(1).all(1)
        assert label in data.labels[same]


def test_tree_becomes_gray_for_a_gray_classifier(tmp_path):
    write_tree(tmp_path)
    images, _ = next(open_images(str(tmp_path), "test", GRAY4).batches(6, GRAY4))
    assert images.shape == (6, 1, 4, 4)


def test_tree_with_splits_takes_the_one_asked_for(tmp_path):
    write_tree(tmp_path / "val")
    write_tree(tmp_path / "train")
    (tmp_path / "train" / "ant" / "more.png").write_bytes(
        (tmp_path / "train" / "ant" / "0.png").read_bytes()
    )
    assert len(open_images(str(tmp_path), "test", RGB16)) == 6
    train = open_images(str(tmp_path), "train", RGB16)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("names", [("train",), ("Train", "valid"), ("training", "testing")])
def test_splits_are_not_taken_for_classes(tmp_path, names):
    for name in names:
        write_tree(tmp_path / name)
    with pytest.raises(InputError, match="is no class, but a part of the images") as error:
        open_images(str(tmp_path), "test", RGB16)
    assert "\n" not in str(error.value)
    assert len(open_images(str(tmp_path / names[0]), "test", RGB16)) == 6


def test_corrupt_image_is_named(tmp_path):
    write_tree(tmp_path, ".jpg")
    file = tmp_path / "bee" / "1.jpg"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"1\.jpg: cannot be read as an image") as error:
        list(open_images(str(tmp_path), "test", RGB16).batches(8, RGB16))
    assert "\n" not in str(error.value)


def damage(folder: Path, kind: str) -> None:
    images, labels = folder / "t10k-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte"
    if kind == "truncated":
        images.write_bytes(images.read_bytes()[:-1])
    elif kind == "short header":
        images.write_bytes(images.read_bytes()[:6])
    elif kind == "other type":
        images.write_bytes(b"\x00\x00\x0d" + images.read_bytes()[3:])
    elif kind == "no labels":
        labels.unlink()
    elif kind == "fewer labels":
        write_idx(folder, np.zeros((5, 4, 4), np.uint8), np.zeros(4, np.uint8))
    elif kind == "truncated gzip":
        (folder / f"{images.name}.gz").write_bytes(gzip.compress(images.read_bytes())[:-20])
    elif kind == "damaged gzip":
        data = bytearray(gzip.compress(images.read_bytes()))
        data[10] = 0xFF  # a deflate block of the type that does not exist
        (folder / f"{images.name}.gz").write_bytes(data)
    elif kind == "no image":
        write_idx(folder, np.zeros((0, 4, 4), np.uint8), np.zeros(0, np.uint8))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("truncated", "truncated, its header announces shape (5, 4, 4)"),
        ("short header", "truncated in its header"),
        ("other type", "not an idx file of unsigned bytes"),
        ("no labels", "holds neither t10k-labels-idx1-ubyte nor"),
        ("fewer labels", "images (5, 4, 4) and labels (4,) do not match"),
        ("truncated gzip", "cannot be read as an idx file"),
        ("damaged gzip", "cannot be read as an idx file"),
        ("no image", "images of shape (0, 1, 4, 4)"),
    ],
)
def test_damaged_idx_files_give_one_line(idx, kind, part):
    damage(idx, kind)
    with pytest.raises(InputError) as error:
        open_images(str(idx), "test", GRAY4)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_without_images_give_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, part in (
        ("missing", "no such folder"),
        ("file", "no such folder"),
        ("empty", "not an ImageFolder tree"),
        ("classes", "not an ImageFolder tree"),
    ):
        with pytest.raises(InputError, match=part) as error:
            open_images(str(tmp_path / name), "test", RGB16)
        assert "\n" not in str(error.value)


def test_shapes_and_labels_must_fit_the_classifier(idx, tmp_path):
    with pytest.raises(InputError, match=r"\(5, 1, 4, 4\), the classifier takes \('N', 3, 16, 16"):
        open_images(str(idx), "test", RGB16)
    data = open_images(str(idx), "test", GRAY4)
    check_labels(data, 4)
    assert few_labels_warnings(str(idx), data, 4) == few_labels_warnings(None, None, 4) == []
    (warning,) = few_labels_warnings(str(idx), data, 5)
    assert warning.startswith(f"{idx}: labels end at 3, the classifier has 5 classes; ")
    with pytest.raises(InputError, match="labels up to 3 were found, the classifier has 3"):
        check_labels(data, 3)
    write_tree(tmp_path / "tree")
    two_channels = Preprocessing(2, 4, (0.5, 0.5), (0.5, 0.5))
    with pytest.raises(InputError, match="the classifier takes 2"):
        open_images(str(tmp_path / "tree"), "test", two_channels)
