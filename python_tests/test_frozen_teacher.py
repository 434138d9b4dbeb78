"""The frozen teacher: the distance of its batch statistics, and that it leaves no trace."""

import pytest
import torch
from distances import closed_form
from networks import RGB8, as_trained, small_residual
from tensors import sample
from torch import nn

from zscgan_ext.classifiers.batch_norm import batch_norm_layers
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.errors import InputError
from zscgan_ext.ops import DISTANCES
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher

pytestmark = pytest.mark.usefixtures("implementation")


def independent_distance(model, images, distance):
    """The distance in float64, from torch.var_mean on what enters each batch norm."""
    model = small_residual().double()
    statistics, eps = ([], [], [], []), []

    def measure(layer, inputs):
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        for values, value in zip(
            statistics, (mean, variance, layer.running_mean, layer.running_var), strict=True
        ):
            values.append(value)
        eps.append(layer.eps)

    for layer in batch_norm_layers(model):
        layer.register_forward_pre_hook(measure)
    logits = model(images)
    return logits, closed_form(statistics, eps, distance)


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "hooks"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_distance_and_gradient_against_float64(distance, fuse):
    model = small_residual()
    images = sample(6, *RGB8.shape).requires_grad_()
    wide = images.detach().double().requires_grad_()
    logits, value, _ = FrozenTeacher(
        trace(model, RGB8.shape), distance, fuse
    ).forward_with_batch_norm_loss(images)
    expected_logits, expected = independent_distance(model, wide, distance)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(logits.double(), expected_logits, rtol=1e-4, atol=1e-5)
    value.backward()
    expected.backward()
    scale = wide.grad.abs().max()
    assert scale > 0
    assert (images.grad - wide.grad).abs().max() < 1e-4 * scale


def test_statistics_that_fit_have_no_distance():
    model = small_residual().train()
    for layer in batch_norm_layers(model):
        layer.momentum = 1.0
    images = sample(64, *RGB8.shape)
    with torch.no_grad():
        model(images)
        for layer in batch_norm_layers(model):  # running_var is unbiased
            count = 64 * 8 * 8
            layer.running_var.mul_((count - 1) / count)
    # In evaluation mode the same statistics normalize, so that every layer sees the same again.
    _, distance, _ = FrozenTeacher(
        trace(model.eval(), RGB8.shape), "gaussian_kl"
    ).forward_with_batch_norm_loss(images.requires_grad_())
    assert distance.item() == pytest.approx(0, abs=1e-6)


def test_the_classifier_is_frozen_and_gets_no_gradient():
    model = small_residual().train().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = FrozenTeacher(model, "mse")
    logits, distance, _ = teacher.forward_with_batch_norm_loss(
        sample(4, *RGB8.shape).requires_grad_()
    )
    (logits.sum() + distance).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_hooks_are_removed():
    model = small_residual()
    teacher = FrozenTeacher(model, "mse", fuse=False)
    assert all(layer._forward_pre_hooks for layer in batch_norm_layers(model))
    teacher.remove_hooks()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_forward_gives_the_logits_alone():
    model = small_residual()
    images = sample(2, *RGB8.shape)
    expected = model(images)
    assert torch.equal(FrozenTeacher(model, "mse")(images), expected)


def test_a_classifier_without_statistics_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(InputError, match=r"^classifier: holds no batch norm with running"):
        FrozenTeacher(as_trained(nn.Sequential(nn.Conv2d(3, 3, 1))), "mse")
    with pytest.raises(InputError, match=r"^classifier: holds no batch norm with running"):
        FrozenTeacher(model, "mse")
