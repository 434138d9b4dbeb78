"""Pictures that ImageNet classifiers are looked at with: crops, and reading them with labels."""

import pytest
import torch
from PIL import Image

from benchmarks.accuracy.bench_imagenet import read_pictures
from benchmarks.accuracy.gather_pictures import SIZE, boxes, matching, write_crops
from zscgan_ext.errors import InputError
from zscgan_ext.images.preprocessing import Preprocessing

RGB16 = Preprocessing(3, 16, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("size", [(300, 200), (90, 160), (64, 64)])
def test_crops_are_squares_within_the_picture_and_none_is_twice(size):
    found = boxes(*size)
    assert len(set(found)) == len(found) == 9
    for left, top, right, bottom in found:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert right - left == bottom - top >= 0.59 * min(size)
    assert found[0][2] - found[0][0] == min(size)


def test_only_whole_labelled_pictures_have_a_label_and_they_come_first(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    colours = {
        "imagenet_00_243": (255, 0, 0),
        "a_flower": (0, 255, 0),
        "imagenet_01_7": (0, 0, 255),
    }
    for name, colour in colours.items():
        picture = tmp_path / f"{name}.png"
        Image.new("RGB", (40, 30), colour).save(picture)
        assert write_crops(picture, pictures) == 9
    pixels, labels = read_pictures(pictures, RGB16)
    assert labels.tolist() == [243, 7]
    assert pixels.shape == (27, 3, 16, 16)
    assert pixels[0, :, 8, 8].tolist() == [255, 0, 0]
    assert pixels[1, :, 8, 8].tolist() == [0, 0, 255]
    assert int((pixels[2:, 1, 8, 8] == 255).sum()) == 9
    with Image.open(pictures / "a_flower-crop8.png") as crop:
        assert crop.size == (SIZE, SIZE)
    assert pixels.dtype == torch.uint8


def test_pictures_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(InputError, match=r"^pictures: .* holds no PNG files"):
        read_pictures(tmp_path, RGB16)
    (tmp_path / "a.jpg").touch()
    assert matching(tmp_path, ["*.jpg"]) == [tmp_path / "a.jpg"]
    with pytest.raises(FileNotFoundError, match=r"no b\*\.jpg"):
        matching(tmp_path, ["a.jpg", "b*.jpg"])
