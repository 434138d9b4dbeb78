"""No small file asks for much memory, and no stage for more images at once than a batch has."""

import gzip
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import hostile_files as make
import pytest
import torch
from networks import RGB8
from PIL import Image
from runs import OWN, TINY
from safetensors.torch import save_file
from torch import nn

from zscgan_ext.classifiers import trust
from zscgan_ext.classifiers.loading import classifier_of, find_source, load_classifier, logits_of
from zscgan_ext.classifiers.pt2.archive import tensors_saved_anew
from zscgan_ext.classifiers.trust import model_size
from zscgan_ext.classifiers.weights import read_state_dict
from zscgan_ext.config.command_line import config_to_yaml, flag, parse_config
from zscgan_ext.config.configs import GeneratorConfig
from zscgan_ext.errors import InputError, is_out_of_memory
from zscgan_ext.export.quantized_file import load_quantized
from zscgan_ext.images import image_files
from zscgan_ext.images.idx_files import read_idx
from zscgan_ext.images.image_files import read_image
from zscgan_ext.images.label_table import open_label_table
from zscgan_ext.run_folder.finished_run import check_generator_size
from zscgan_ext.stages.preparation import check_generator
from zscgan_ext.synthesis.diversity import (
    ClassImages,
    generated_classes,
    measure_diversity,
    near_duplicates,
)
from zscgan_ext.synthesis.generator import ConditionalGenerator, generator_of
from zscgan_ext.train import main as train
from zscgan_ext.whole_run import settings_of_the_folder
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

MOST_MEMORY = 300 << 20  # bytes that a file may add to the peak
OLD_HEADER = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
END = b"PK\x05\x06"  # of an archive
HUGE = struct.pack("<I", 0xFFFFFFF0)
PICKLES = {
    "text": b"\x80\x02X" + HUGE + b"a" * 20,
    "bytes": b"\x80\x03B" + HUGE + b"a" * 20,
    "array of bytes": b"\x80\x02c__builtin__\nbytearray\nJ"
    + struct.pack("<i", 2**31 - 1)
    + b"\x85R.",
}


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    """A file of some kilobytes has as many pixels as are accepted, and there are many threads."""
    working, most = [], []

    def watched(image):
        working.append(id(image))  # images of other threads must not be compared
        most.append(len(working))
        time.sleep(0.05)
        working.remove(id(image))
        return image

    monkeypatch.setattr(image_files, "eight_bits", watched)
    monkeypatch.setattr(image_files, "LARGE_IMAGE", 1000)
    for size, together in (((40, 40), 1), ((10, 10), 2)):
        Image.new("RGB", size).save(tmp_path / "x.png")
        most.clear()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: read_image(tmp_path / "x.png", RGB8), range(8)))
        assert (max(most) > 1) == (together > 1)


def tiled_picture(file, side):
    """Write a grey TIFF file of one pixel, in a tile of many that are black."""
    tile = zlib.compress(bytes(side * side))
    entries = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (277, 1)]
    entries += [(322, side), (323, side), (324, 8 + 2 + 10 * 12 + 4), (325, len(tile))]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    start = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    file.write_bytes(start + fields + bytes(4) + tile)


def test_the_tiles_of_a_picture_count_as_its_pixels(tmp_path, monkeypatch):
    """A tile is decoded as a whole, however little of it the picture shows."""
    tiled_picture(tmp_path / "x.tif", 64)
    assert read_image(tmp_path / "x.tif", RGB8).shape == (3, 8, 8)
    with Image.open(tmp_path / "x.tif") as image:
        assert image_files.check_pixels(image, (9, 9)) == 64 * 64
    tiled_picture(tmp_path / "x.tif", 20_000)
    memory = peak_memory()
    with pytest.raises(InputError, match="tiles of 400,000,000 pixels are too large"):
        read_image(tmp_path / "x.tif", RGB8)
    assert peak_memory() - memory < MOST_MEMORY


def test_a_table_of_labels_takes_no_memory_for_each_row(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"file,a,b\n" + b",,\n" * (16 << 20))
    memory = peak_memory()
    with pytest.raises(InputError, match="expected paths below its folder, got ''"):
        open_label_table(str(tmp_path), RGB8, ("a", "b"))
    assert peak_memory() - memory < 2 * MOST_MEMORY


def test_a_small_gzipped_file_asks_for_little(tmp_path):
    """A thousandth of what it would unpack to is there."""
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    header = b"\0\0\x08\x03" + struct.pack(">III", 3000, 1024, 1024)
    file.write_bytes(gzip.compress(header + bytes(1 << 20)))
    memory = peak_memory()
    with pytest.raises(InputError, match="accepted are up to 67,108,864 bytes"):
        read_idx(file)
    assert peak_memory() - memory < MOST_MEMORY


def in_archive(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", content), ("version", b"3"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "wrap", [lambda c: c, lambda c: OLD_HEADER + c, in_archive], ids=["plain", "old", "archive"]
)
@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_a_small_file_of_weights_asks_for_little(tmp_path, content, wrap):
    file = tmp_path / "w.pth"
    file.write_bytes(wrap(content))
    memory = peak_memory()
    with pytest.raises(InputError, match=r"holds pickled code|is truncated or not a torch"):
        read_state_dict(file)
    assert peak_memory() - memory < MOST_MEMORY


def with_a_hidden_list(content, hidden):
    """An archive behind another one, whose list of members is where the common end says it is.

    Python takes the list right before the end, torch the one at the place that the end names.
    """
    place, end = hidden.rindex(END), content.rindex(END)
    start = int.from_bytes(hidden[place + 16 : place + 20], "little")
    shown = int.from_bytes(content[end + 16 : end + 20], "little")
    moved = bytearray(hidden[:place] + content[:end])
    before = place - (place + shown - start)  # what Python takes for the start of the archive
    entry = place + shown
    while entry < len(moved):
        offset = int.from_bytes(moved[entry + 42 : entry + 46], "little") + before
        moved[entry + 42 : entry + 46] = (offset % (1 << 32)).to_bytes(4, "little")
        lengths = struct.unpack_from("<HHH", moved, entry + 28)
        entry += 46 + sum(lengths)
    return bytes(moved) + hidden[place:]


def archive_of_zeros(length, compression):
    """A state dict of ten zeros as `torch.save` writes it, with a storage of so many bytes."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(10)}, buffer)
    changed = io.BytesIO()
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(changed, "w", compression) as anew:
        for name in good.namelist():
            content = bytes(length) if name.endswith("data/0") else good.read(name)
            anew.writestr(zipfile.ZipInfo(name), content, compression)
    return changed.getvalue()


def test_an_archive_holds_for_torch_what_was_checked(tmp_path):
    file = tmp_path / "w.pth"
    good = archive_of_zeros(40, zipfile.ZIP_STORED)
    file.write_bytes(with_a_hidden_list(good, archive_of_zeros(1 << 30, zipfile.ZIP_DEFLATED)))
    memory = peak_memory()
    assert torch.equal(read_state_dict(file)["a"], torch.zeros(10))
    tensors_saved_anew("serialized_state_dict.pt", file.read_bytes())
    assert peak_memory() - memory < MOST_MEMORY


def test_members_of_one_name_are_refused(tmp_path):
    file = tmp_path / "w.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/version", b"3")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/version", b"3")
    with pytest.raises(InputError, match="members of the same name"):
        read_state_dict(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classifier": "torchvision:vgg16"},
            "too few for the [0-9,]+ weights of torchvision:vgg16",
        ),
        ({"classifier": "timm:resnet50"}, "too few for the [0-9,]+ weights of timm:resnet50"),
        (
            {"classifier": "torchvision:vgg16", "preprocessing": {"image_size": 4096}},
            "too few for the [0-9,]+ weights",
        ),
    ],
)
def test_a_small_quantized_file_asks_for_little(tmp_path, changes, message):
    file = tmp_path / "m.safetensors"
    make.with_facts(**changes)(file)
    memory = peak_memory()
    with pytest.raises(InputError, match=message):
        load_quantized(file)
    assert peak_memory() - memory < MOST_MEMORY


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"image_size": 4096},
        {"image_size": 4096, "channels": 400, "mean": [0.5] * 400, "std": [1.0] * 400},
    ],
)
def test_a_small_file_of_ones_own_classifier_asks_for_little(tmp_path, preprocessing):
    """Its code is the user's, but not the size of its images."""
    file = tmp_path / "m.safetensors"
    make.with_facts(preprocessing=preprocessing)(file)
    memory = peak_memory()
    with pytest.raises(InputError, match=r"image_size 4096 gives feature maps of [0-9,]+"):
        load_quantized(file, "networks:small_residual")
    assert peak_memory() - memory < MOST_MEMORY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scheme": {"name": "deploy", "weight_bits": 4.0, "activation_bits": 4}},
            "scheme.weight_bits: expected an integer from 2 to 8.*got 4.0",
        ),
        (
            {"scheme": {"name": "deploy", "weight_bits": True, "activation_bits": 4}},
            "scheme.weight_bits: expected an integer from 2 to 8, got True",
        ),
        ({"scheme": [1]}, "scheme: expected a mapping.*got a list of 1"),
        ({"class_names": ["a"] * 4 + [5]}, "class_names.4: expected text.*got 5"),
        ({"num_classes": 5.0}, "num_classes: expected an integer.*got 5.0"),
        ({"preprocessing": {"image_size": 8.0}}, "preprocessing.image_size: expected .*got 8.0"),
        ({"preprocessing": {"mean": [True] * 3}}, "preprocessing.mean.0: expected .*got True"),
    ],
)
def test_the_description_of_a_file_is_checked_by_type(tmp_path, changes, message):
    file = tmp_path / "m.safetensors"
    make.with_facts(**changes)(file)
    with pytest.raises(InputError, match=f"its description is damaged .{message}"):
        load_quantized(file)


def test_the_extent_of_a_classifier_is_known_before_it_is_built():
    bundled = BUNDLED_CLASSIFIERS["resnet20"]
    weights, largest = model_size(find_source("resnet20"), None, None)
    assert weights == sum(parameter.numel() for parameter in bundled.build().parameters())
    assert largest == 16 * bundled.preprocessing.image_size**2


class Counting(nn.Module):
    """A classifier of three classes that keeps how many images it was asked about."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.asked = []

    def forward(self, images):
        """Map [N, 3, H, W] to [N, 3]."""
        self.asked.append(len(images))
        return self.fc(images.mean((2, 3)))


EVALUATED = """
import resource, sys
from zscgan_ext.evaluate import evaluation
from zscgan_ext.evaluate.__main__ import main
first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main([sys.argv[1], "--data", sys.argv[2]])
print(first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def test_few_large_images_are_evaluated_at_once(tmp_path):
    """A file of some kilobytes has an image size of its own, to which all images are resized."""
    make.onnx_model({"image_size": "2000"}, shape=(None, 3, None, None))(tmp_path / "m.onnx")
    for label in range(3):
        for index in range(20):
            file = tmp_path / "tree" / f"class{label}" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(make.picture())
    # In a process of its own: what tests before have freed counts for nothing there.
    done = subprocess.run(
        [sys.executable, "-c", EVALUATED, str(tmp_path / "m.onnx"), str(tmp_path / "tree")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = map(int, done.stdout.split()[-2:])
    assert last - first < 1 << 20  # KiB; one batch of all of them has 2.9 GB, thrice


def test_a_small_run_asks_for_no_large_generator(tmp_path):
    classifier = load_classifier("resnet20")
    file = tmp_path / "generator.safetensors"
    save_file(generator_of(GeneratorConfig(latent_dim=4), classifier).state_dict(), file)
    check_generator_size(file, GeneratorConfig(latent_dim=4), classifier)
    memory = peak_memory()
    with pytest.raises(InputError, match=r"too few for the [0-9,]+ weights of a gene"):
        check_generator_size(file, GeneratorConfig(latent_dim=1 << 20), classifier)
    assert peak_memory() - memory < MOST_MEMORY


def test_diversity_looks_at_a_batch_at_once():
    random = torch.Generator().manual_seed(0)
    images = [torch.randn(25, *RGB8.shape, generator=random) for _ in range(2)]
    model = Counting()
    parts = measure_diversity(model, (ClassImages(i, x) for i, x in enumerate(images)), 8)
    assert max(model.asked) == 8
    assert sum(model.asked) == 50
    whole = measure_diversity(Counting(), iter([]), 8)
    assert whole is None
    model.asked = []
    once = measure_diversity(model, (ClassImages(i, x) for i, x in enumerate(images)))
    assert parts.spread == pytest.approx(once.spread, rel=1e-5)
    assert parts.near_duplicates == once.near_duplicates
    assert parts.mean_entropy == pytest.approx(once.mean_entropy, rel=1e-5)


def test_images_to_measure_are_generated_a_batch_at_once(monkeypatch):
    asked = []
    forward = ConditionalGenerator.forward

    def counting(self, latent, labels):
        asked.append(len(latent))
        return forward(self, latent, labels)

    monkeypatch.setattr(ConditionalGenerator, "forward", counting)
    generator = ConditionalGenerator(2, 4, RGB8).eval()
    classes = list(generated_classes(generator, torch.Generator(), 32))
    assert [len(each.images) for each in classes] == [250, 250]
    assert max(asked) == 32


def test_duplicates_are_found_across_parts():
    random = torch.Generator().manual_seed(0)
    images = torch.randn(150, 3, 8, 8, generator=random)
    images[149], images[70], images[3] = 2 * images[0] + 1, images[69], images[2]
    assert near_duplicates(images) == pytest.approx(3 / 150)


ASKING = {
    "batch_size": 1 << 20,
    "fine_tuning_batch_size": 1 << 14,
    "latent_dim": 1 << 20,
    "num_classes": 1 << 20,
    "image_size": 4096,
}


@pytest.mark.parametrize("name", ASKING)
def test_the_folder_of_a_run_asks_for_no_memory_when_it_is_resumed(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.setattr(trust, "LARGEST_OF_OWN", 1 << 23)  # half of what this one has
    config = parse_config(TINY).changed(**{name: ASKING[name]})
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    before = peak_memory()
    assert train([OWN, f"--resume={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {name}: " if name != "image_size" else "error: ")
    assert f"{ASKING[name]}" in line
    assert peak_memory() - before < MOST_MEMORY
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_settings_that_are_given_again_are_trusted(tmp_path):
    config = replace(parse_config(TINY).changed(**ASKING), resume=tmp_path)
    arguments = [OWN, *(f"{flag(name)}={value}" for name, value in ASKING.items())]
    assert settings_of_the_folder(config, arguments).isdisjoint(ASKING)
    assert settings_of_the_folder(config, [OWN]) >= set(ASKING)
    check_generator(config, settings_of_the_folder(config, arguments))
    with pytest.raises(InputError, match="if that is meant, give --latent-dim 1048576 again"):
        check_generator(config, {"latent_dim"})


def test_images_of_an_own_classifier_in_a_run_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "LARGEST_OF_OWN", 1 << 23)
    config = parse_config(TINY).changed(image_size=4096)
    with pytest.raises(InputError, match="image_size 4096 gives feature maps"):
        classifier_of(config, size_from=tmp_path / "config.yaml")


def test_memory_that_is_short_is_not_taken_for_wrong_images():
    class Short(nn.Module):
        def forward(self, images):
            raise RuntimeError("could not create a primitive")

    with pytest.raises(RuntimeError) as raised:
        logits_of("short", Short(), RGB8, None)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor"))
