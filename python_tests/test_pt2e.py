"""Programs with quantized_decomposed operators: executed by torch alone, and proved."""

import io
import json
import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from exported import calibrated, noise, small_classifier
from torch.nn import functional as F

import zscgan_ext
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.errors import InputError
from zscgan_ext.export.pt2e import METADATA, decomposed, pt2e_file, verify_program

OPERATORS = "quantized_decomposed"
ALONE = """
import sys, torch
import torch.ao.quantization.fx._decomposed
program = torch.export.load(sys.argv[1]).module()
images = torch.load(sys.argv[2])
torch.save([program(images), program(images[:1])], sys.argv[3])
assert "zscgan_ext" not in sys.modules
"""


def written(scheme="deploy", bits=(8, 8)):
    classifier = small_classifier()
    student = calibrated(classifier, scheme, *bits)
    data, report = pt2e_file(classifier, student, noise(classifier))
    return classifier, student, data, report


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [("deploy", (4, 4)), ("deploy", (8, 8)), ("paper", (3, 5)), ("symmetric", (8, 8))],
)
def test_every_node_computes_what_the_student_does(scheme, bits):
    *_, report = written(scheme, bits)
    assert report["images"] == 128
    assert report["agreement"] >= 99.5
    assert report["logit_difference"] <= report["allowed_difference"]


def test_torch_alone_executes_a_file(tmp_path):
    classifier, student, data, _ = written(bits=(4, 4))
    images = noise(classifier)[0]
    (tmp_path / "model.pt2").write_bytes(data)
    torch.save(images, tmp_path / "images")
    files = [str(tmp_path / name) for name in ("model.pt2", "images", "logits")]
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True, cwd=tmp_path, env={})
    several, one = torch.load(tmp_path / "logits")
    torch.testing.assert_close(several, student(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(one, student(images[:1]), rtol=0, atol=1e-5)


def test_a_program_holds_integers_between_its_operators():
    _, student, data, _ = written(bits=(4, 8))
    files = {METADATA: ""}
    program = torch.export.load(io.BytesIO(data), extra_files=files)
    kinds = Counter(str(n.target) for n in program.graph.nodes if n.op == "call_function")
    quantizers = len(student.activation_quantizers)
    assert kinds["quantized_decomposed.quantize_per_tensor.default"] == quantizers
    assert kinds["quantized_decomposed.dequantize_per_tensor.default"] == quantizers
    assert kinds["quantized_decomposed.dequantize_per_channel.default"] == len(student.layers)
    held = {**program.state_dict, **program.constants}
    integers = [tensor for name, tensor in held.items() if name.endswith("integers")]
    assert {tensor.dtype for tensor in integers} == {torch.int8}
    assert len(integers) == len(student.layers)
    assert json.loads(files[METADATA])["class_names"] == [f"class {i}" for i in range(5)]


@pytest.mark.parametrize("scheme", ["deploy", "symmetric"])
def test_every_layer_stands_between_operators_that_compilers_fuse_with_it(scheme):
    """Compilers leave a layer in floats that has something else before or behind it."""
    *_, data, _ = written(scheme)
    program = torch.export.load(io.BytesIO(data))
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    layers = [node for node in nodes if str(node.target).startswith(("aten.conv", "aten.linear"))]
    assert len(layers) == 4
    for node in layers:
        before = [str(source.target) for source in node.args[:2]]
        assert before == [
            f"{OPERATORS}.dequantize_per_{of}.default" for of in ("tensor", "channel")
        ]
        (behind,) = node.users
        if str(behind.target) == "aten.relu.default":
            (behind,) = behind.users
        is_last = node is layers[-1]
        expected = "output" if is_last else f"{OPERATORS}.quantize_per_tensor.default"
        # Where TensorRT adds, a layer passes its floats on.
        assert str(behind.target) in (expected, *(["aten.add.Tensor"] * (scheme == "symmetric")))


def test_the_upper_bound_of_relu6_goes_only_where_the_quantizer_has_it():
    classifier = small_classifier()
    student = calibrated(classifier, "deploy", 8, 8)
    quantizer = student.named_activation_quantizers()["relu6"]
    quantizer.log_scale.fill_(math.log(7 / 255))
    program = decomposed(student)
    assert any(node.target is F.relu6 for node in program.graph.nodes)
    images = 8 * noise(classifier)[0]
    torch.testing.assert_close(program(images), student(images), rtol=0, atol=1e-5)
    quantizer.log_scale.fill_(math.log(5.9 / 255))
    program = decomposed(student)
    assert not any(node.target is F.relu6 for node in program.graph.nodes)
    torch.testing.assert_close(program(images), student(images), rtol=0, atol=1e-5)


def test_a_wrong_program_is_found():
    classifier, student, *_ = written()
    program = decomposed(student)
    scale, zero_point = program.activation_quantizers.relu6.qparams
    program.activation_quantizers.relu6.qparams = (1.2 * scale, zero_point)
    traced = torch.fx.symbolic_trace(program)
    with pytest.raises(
        InputError, match=r"first node that differs is activation_quantizers\.relu6"
    ):
        verify_program(student, traced, noise(classifier))


def test_the_target_chooses_the_format(tmp_path):
    config = RunConfig.of_options({"target": "pt2e"})
    assert (config.quantization.bits, config.export) == ("w8a8", "pt2")
    classifier = small_classifier()
    student = zscgan_ext.quantize(classifier, target="pt2e")
    report = zscgan_ext.export(classifier, student, None, tmp_path, ["pt2"], target="pt2e")
    assert report["bytes"]["pt2"] == (tmp_path / "model.pt2").stat().st_size
