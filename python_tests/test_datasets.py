"""Labelled images from idx files and ImageFolder trees."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import write_idx
from torchvision import transforms
from torchvision.datasets import ImageFolder

from zscgan_ext.errors import InputError
from zscgan_ext.images import datasets
from zscgan_ext.images.datasets import (
    check_labels,
    few_labels_warnings,
    near_chance_warnings,
    open_images,
)
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

RGB16 = Preprocessing(3, 16, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
GRAY4 = Preprocessing(1, 4, (0.5,), (0.25,))


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


def test_images_of_the_right_size_are_taken_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "cat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "cat" / "0.png")
    images, _ = next(open_images(str(tmp_path), "test", RGB16).batches(1, RGB16))
    expected = RGB16.normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert torch.equal(images, expected)


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


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "lost+found", "$RECYCLE.BIN"),
        *("#recycle", "System Volume Information"),
    ],
)
def test_hidden_folders_are_no_classes(tmp_path, name):
    write_tree(tmp_path)
    expected = open_images(str(tmp_path), "test", RGB16)
    write_tree(tmp_path / name)
    write_tree(tmp_path / "ant" / name)
    (tmp_path / name / "0-checkpoint.png").write_bytes(expected.files[0].read_bytes())
    (tmp_path / "bee" / "._0.png").write_bytes(b"the other half of a file of macOS")
    found = open_images(str(tmp_path), "test", RGB16)
    assert found.files == expected.files
    assert found.labels.tolist() == expected.labels.tolist()


def test_a_tree_of_hidden_folders_alone_is_none(tmp_path):
    write_tree(tmp_path / ".ipynb_checkpoints")
    with pytest.raises(InputError, match="not an ImageFolder tree"):
        open_images(str(tmp_path), "test", RGB16)


def write_numbered(folder: Path, names: list[str]) -> None:
    """Write a tree in which class `n` has images of brightness 10 n."""
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("L", (4, 4), 10 * int(name)).save(folder / name / "0.png")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([str(n) for n in range(12)], list(range(12))),  # 10 and 11 sort before 2
        (["0", "1", "2", "4", "5"], [0, 1, 2, 4, 5]),
        (["00", "03", "11"], [0, 3, 11]),
        (["0", "7", "010"], [0, 7, 10]),
        (["3"], [3]),
    ],
)
def test_folders_named_by_numbers_are_these_labels(tmp_path, names, labels):
    write_numbered(tmp_path, names)
    (tmp_path / ".hidden").mkdir()
    data = open_images(str(tmp_path), "test", GRAY4)
    assert sorted(data.labels.tolist()) == labels
    images, found = next(data.batches(20, GRAY4))
    assert ((images[:, 0, 0, 0] * 0.25 + 0.5) * 25.5).round().long().tolist() == found.tolist()


@pytest.mark.parametrize("other", ["cat", "1a", "-1", "1.5", "²"])
def test_where_not_all_names_are_numbers_their_order_counts(tmp_path, other):
    write_numbered(tmp_path, ["5", "10"])
    (tmp_path / "5").rename(tmp_path / "z")
    (tmp_path / "z").rename(tmp_path / other)
    data = open_images(str(tmp_path), "test", GRAY4)
    assert data.labels.tolist() == [0, 1]
    assert [file.parent.name for file in data.files] == sorted(["10", other])


@pytest.mark.parametrize(
    ("names", "part"), [(["1", "01"], "01 and 1 are one label"), (["1", "9" * 30], "is no label")]
)
def test_numbers_that_are_no_labels_give_one_line(tmp_path, names, part):
    for name in names:
        write_numbered(tmp_path / "x", ["1"])
        (tmp_path / "x" / "1").rename(tmp_path / name)
    (tmp_path / "x").rmdir()
    with pytest.raises(InputError, match=part) as error:
        open_images(str(tmp_path), "test", GRAY4)
    assert "\n" not in str(error.value)


def test_labels_counted_from_one_are_told(tmp_path):
    write_numbered(tmp_path, ["1", "2", "3"])
    with pytest.raises(InputError, match=r"labels up to 3 were found.* counted from 0"):
        check_labels(open_images(str(tmp_path), "test", GRAY4), 3)


@pytest.mark.parametrize(
    ("percent", "classes", "warns"),
    [
        *((5.5, 6, True), (20, 6, True), (30, 6, False), (0.1, 1000, True), (40, 1000, False)),
        *((50, 2, True), (60, 2, False), (0, 2, True)),
    ],
)
def test_accuracy_near_chance(percent, classes, warns):
    assert near_chance_warnings("photos", 2, percent, classes) == []
    lines = near_chance_warnings("photos", 200, percent, classes)
    assert len(lines) == warns
    assert not warns or lines[0].startswith(f"photos: the float classifier is right on {percent}")


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
