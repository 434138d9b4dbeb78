"""Biases on the grid of the products they are added to."""

import pytest
import torch
from networks import RGB8, normal_batches, small_residual

from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.quantized_classifier import input_quantizer, round_biases_to_int32
from zscgan_ext.quantization.quantizers import QuantizedLayer
from zscgan_ext.quantization.scheme import Scheme


def students(scheme):
    """The same student before and after its biases were moved and rounded."""
    made = []
    for _ in range(2):
        student = convert(small_residual(), Scheme(scheme, 4, 4), RGB8.shape)
        calibrate(student, normal_batches(2, 8, *RGB8.shape), 2)
        for index, layer in enumerate(student.layers):
            if layer.layer.bias is not None:
                layer.layer.bias.data += 0.01 * (index + 1)
        made.append(student)
    round_biases_to_int32(made[1])
    return made


def test_biases_are_the_nearest_multiples_of_input_scale_times_weight_scale():
    before, after = students("deploy")
    seen = 0
    for node in after.graph.graph.nodes:
        layer = module_of(after.graph, node)
        if not isinstance(layer, QuantizedLayer):
            continue
        quantizer = input_quantizer(after.graph, node)
        step = layer.log_scale.exp().double() * quantizer.log_scale.exp().double()
        ratio = layer.layer.bias.double() / step
        torch.testing.assert_close(ratio, ratio.round(), rtol=0, atol=1e-3)
        moved = layer.layer.bias - before.graph.get_submodule(str(node.target)).layer.bias
        assert (moved.abs() <= step * 0.501).all()
        assert moved.abs().max() > 0
        seen += 1
    assert seen == 4


def test_rounding_twice_changes_nothing():
    _, student = students("deploy")
    biases = [layer.layer.bias.clone() for layer in student.layers]
    round_biases_to_int32(student)
    assert all(
        torch.equal(a, layer.layer.bias) for a, layer in zip(biases, student.layers, strict=True)
    )


def test_biases_of_asymmetric_weights_stay():
    before, after = students("paper")
    for old, new in zip(before.layers, after.layers, strict=True):
        assert old.layer.bias is None or torch.equal(old.layer.bias, new.layer.bias)


@pytest.mark.parametrize("name", ["stem", "fc"])
def test_the_input_quantizer_is_found_through_reshapes(name):
    student = convert(small_residual(), Scheme("deploy", 4, 4), RGB8.shape)
    nodes = {str(node.target): node for node in student.graph.graph.nodes}
    expected = {"stem": "images", "fc": "pool"}[name]
    quantizers = student.graph.get_submodule("activation_quantizers")
    assert input_quantizer(student.graph, nodes[name]) is quantizers[expected]
