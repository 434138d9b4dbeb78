"""Packed safetensors: the same logits bit for bit, and damage told in one line."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from exported import calibrated, calibrated_resnet20, noise, small_classifier
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import zscgan_ext
from zscgan_ext.errors import InputError
from zscgan_ext.export.quantized_file import METADATA, logarithm_of, quantized_file


def write(folder, classifier, student):
    file = folder / "model.safetensors"
    file.write_bytes(quantized_file(student, classifier))
    return file


def description_of(file):
    with safe_open(file, "pt") as stream:
        return json.loads(stream.metadata()[METADATA])


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits"), [(2, 5), (3, 3), (4, 4), (7, 8), (8, 8)]
)
@pytest.mark.parametrize("scheme", ["deploy", "paper"])
def test_the_logits_are_those_of_the_student(tmp_path, scheme, weight_bits, activation_bits):
    classifier = small_classifier()
    student = calibrated(classifier, scheme, weight_bits, activation_bits)
    file = write(tmp_path, classifier, student)
    loaded = zscgan_ext.load_quantized(file, "networks:small_residual")
    for images in noise(classifier):
        assert torch.equal(loaded(images), student(images))
    assert loaded.preprocessing == classifier.preprocessing
    assert loaded.class_names == classifier.class_names
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_threads_may_share_what_was_loaded(tmp_path):
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 4, 4)
    loaded = zscgan_ext.load_quantized(
        write(tmp_path, classifier, student), "networks:small_residual"
    )
    images = noise(classifier)[0]
    expected = student(images)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: loaded(images), range(60)))
    assert all(torch.equal(logits, expected) for logits in results)


@pytest.mark.parametrize("scheme", ["deploy", "paper"])
def test_resnet20_is_small_and_the_same(tmp_path, scheme):
    classifier, student = calibrated_resnet20(scheme, 4, 4)
    file = write(tmp_path, classifier, student)
    loaded = zscgan_ext.load_quantized(file)
    images = noise(classifier)[0]
    assert torch.equal(loaded(images), student(images))
    floats = sum(4 * parameter.numel() for parameter in classifier.model.parameters())
    assert file.stat().st_size < 0.17 * floats


def test_the_layout_is_the_documented_one(tmp_path):
    classifier = small_classifier()
    file = write(tmp_path, classifier, calibrated(classifier, "deploy", 4, 4))
    tensors = load_file(file)
    assert tensors["stem.weight"].dtype == torch.int8
    assert tensors["stem.weight"].shape == (8, 3, 3, 3)
    assert tensors["depthwise.weight"].dtype == torch.uint8
    assert tensors["depthwise.weight"].shape == (8 * 9 // 2,)
    assert tensors["depthwise.weight_scale"].shape == (8,)
    assert "depthwise.weight_zero_point" not in tensors
    assert tensors["depthwise.bias"].dtype == torch.float32
    assert tensors["activation_quantizers.relu.scale"].shape == (1,)
    assert tensors["activation_quantizers.relu.zero_point"].dtype == torch.uint8
    facts = description_of(file)
    assert facts["classifier"] == "networks:small_residual"
    widths = {"weight_bits": 4, "activation_bits": 4, "layers": {}}
    assert facts["scheme"] == {"name": "deploy", **widths}
    assert facts["packed_shapes"]["depthwise.weight"] == [8, 1, 3, 3]


def test_the_file_decides_of_no_code(tmp_path, monkeypatch):
    (tmp_path / "never_imported.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    classifier = small_classifier(name="never_imported:build")
    file = write(tmp_path, classifier, calibrated(classifier, "deploy", 4, 4))
    with pytest.raises(InputError, match="names 'never_imported:build', which is of no library"):
        zscgan_ext.load_quantized(file)


def without(name):
    return lambda tensors, facts: tensors.pop(name)


def replaced(name, value):
    return lambda tensors, facts: tensors.update({name: value})


def changed(name, value):
    return lambda tensors, facts: facts.update({name: value})


DAMAGE = {
    "missing tensor": (without("stem.weight_scale"), "lacks stem.weight_scale"),
    "missing quantizer": (without("activation_quantizers.relu.scale"), "lacks activation_quant"),
    "unknown tensor": (replaced("more", torch.zeros(1)), "has more, which the classifier"),
    "wrong shape": (
        replaced("depthwise.weight", torch.zeros(3, dtype=torch.uint8)),
        r"expected depthwise.weight as torch.uint8 \(36,\), got torch.uint8 \(3,\)",
    ),
    "wrong dtype": (
        replaced("stem.weight_scale", torch.zeros(8, dtype=torch.int32)),
        "expected stem.weight_scale as torch.float32 .*got torch.int32",
    ),
    "no numbers": (
        replaced("stem.bias", torch.full((8,), torch.nan)),
        "has NaN or infinite values in stem.bias",
    ),
    "wrong width": (
        changed("scheme", {"name": "deploy", "weight_bits": "4", "activation_bits": 4}),
        "its description is damaged",
    ),
    "no preprocessing": (changed("preprocessing", None), "its description is damaged"),
    "wrong scheme": (changed("scheme", {"name": "deploy"}), "its description is damaged"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_told_in_one_line(tmp_path, damage, message):
    classifier = small_classifier()
    file = write(tmp_path, classifier, calibrated(classifier, "deploy", 4, 4))
    tensors, facts = load_file(file), description_of(file)
    damage(tensors, facts)
    save_file(tensors, file, {METADATA: json.dumps(facts)})
    with pytest.raises(InputError, match=message) as error:
        zscgan_ext.load_quantized(file, "networks:small_residual")
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        zscgan_ext.load_quantized(tmp_path / "gone.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        zscgan_ext.load_quantized(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="holds no quantized classifier"):
        zscgan_ext.load_quantized(tmp_path / "plain.safetensors")


@given(st.floats(-30, 10, width=32))
def test_a_scale_has_a_logarithm_with_its_very_exponential(value):
    scale = torch.tensor([value]).exp()
    assert torch.equal(logarithm_of(scale).exp(), scale)


def test_the_package_offers_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'load_quantised'"):
        _ = zscgan_ext.load_quantised
