"""`--calibration-data`: images of the user's, mixed into generated ones."""

from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from networks import small_gray
from PIL import Image
from runs import TINY, results_of, write_fashion_mnist
from safetensors.torch import load_file, save

from zscgan_ext.classifiers.heads import SINGLE_LABEL
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.errors import InputError
from zscgan_ext.images.datasets import LabelledImages
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.stages.calibration_data import mixed_batches
from zscgan_ext.train import main as train

GRAY = Preprocessing(1, 28, (0.5,), (0.25,))


def run_of(label_weight=0.0):
    """What `mixed_batches` needs of a run."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        classifier=SimpleNamespace(model=small_gray(), preprocessing=GRAY, head=SINGLE_LABEL),
        execution=SimpleNamespace(memory_format=torch.contiguous_format),
        config=SimpleNamespace(fine_tuning=SimpleNamespace(label_weight=label_weight)),
    )


def own_images(count):
    """Images of one value each, which tells them apart."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    return LabelledImages(pixels.contiguous(), torch.zeros(count, dtype=torch.int64))


def generated(size):
    """Endless batches of images that no pixels give, with the label 7."""
    while True:
        yield torch.full((size, 1, 28, 28), 9.0), torch.full((size,), 7)


@pytest.mark.parametrize(("images", "size", "share"), [(5, 32, 5), (50, 32, 16), (5, 1, 0)])
def test_up_to_half_of_a_batch_are_the_users_images_none_of_them_twice(images, size, share):
    rng = torch.Generator().manual_seed(0)
    batches = mixed_batches(run_of(), own_images(images), generated(size), size, rng)
    seen = set()
    for pixels, labels in islice(batches, 20):
        assert pixels.shape == (size, 1, 28, 28)
        assert len(labels) == size
        values = ((pixels[:, 0, 0, 0] * 0.25 + 0.5) * 255).round()
        own = values[pixels[:, 0, 0, 0] != 9].tolist()
        assert len(own) == len(set(own)) == share
        seen.update(own)
    assert seen == (set(range(images)) if share else set())


def test_the_classifier_labels_them_where_labels_have_a_weight():
    rng = partial(torch.Generator().manual_seed, 0)
    pixels, labels = next(mixed_batches(run_of(1.0), own_images(4), generated(8), 8, rng()))
    assert torch.equal(labels[:4], small_gray()(pixels[:4]).argmax(1))
    assert labels[4:].tolist() == [7] * 4
    _, labels = next(mixed_batches(run_of(), own_images(4), generated(8), 8, rng()))
    assert labels.tolist() == [7] * 8


def weights_of(file):
    """The bytes of a file's tensors, without its metadata, which say what was given."""
    return save(dict(sorted(load_file(file).items())))


def test_a_run_learns_from_them_and_its_generator_does_not(tmp_path):
    photos = tmp_path / "photos" / "monday"
    photos.mkdir(parents=True)
    for number in range(5):
        Image.new("L", (28, 28), 50 * number).save(photos / f"{number}.png")
    sources = {
        "none": [],
        "five": [f"--calibration-data={photos.parent}"],
        "idx": [f"--calibration-data={write_fashion_mnist(tmp_path / 'idx', 'train')}"],
    }
    results = {}
    for name, options in sources.items():
        folder = tmp_path / name
        assert train([*TINY, *options, f"--output={folder}"]) == 0
        results[name] = results_of(folder)
    generators = {weights_of(tmp_path / name / "generator.safetensors") for name in sources}
    students = {weights_of(tmp_path / name / "quantized.safetensors") for name in sources}
    assert (len(generators), len(students)) == (1, 3)
    again = tmp_path / "again"
    assert train([*TINY, *sources["five"], f"--output={again}"]) == 0
    assert results_of(again) == results["five"]


def test_what_is_no_folder_of_images_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "holds no image"), ("nowhere", "no such folder")):
        options = [f"--calibration-data={tmp_path / name}", f"--output={tmp_path / 'out'}"]
        assert train([*TINY, *options]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / name}: {message}" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="calibration_data: photos needs generated images"):
        RunConfig.of_options({"preset": "instant", "calibration_data": "photos"})
