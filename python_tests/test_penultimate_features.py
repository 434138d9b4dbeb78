"""What the last weighted layer reads: of a model, and of the frozen teacher's graph."""

import pytest
import torch
from networks import RGB8, small_residual
from torch import nn

from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.penultimate_features import PenultimateFeatures, penultimate_features


def test_penultimate_features_are_what_the_last_layer_reads():
    model = small_residual()
    images = torch.randn(3, 3, 8, 8)
    logits, features = penultimate_features(model, images)
    torch.testing.assert_close(model.fc(features), logits)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_feature_maps_before_a_last_convolution_are_averaged():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1))
    images = torch.randn(2, 3, 6, 6)
    _, features = penultimate_features(model, images)
    torch.testing.assert_close(features, model[0](images).mean((2, 3)))


def test_without_a_weighted_layer_the_logits_stand_for_the_features():
    images = torch.randn(2, 1, 2, 2)
    logits, features = penultimate_features(nn.Flatten(), images)
    assert torch.equal(logits, features)


def test_features_are_those_of_the_last_run_and_taken_once():
    model = small_residual()
    features = PenultimateFeatures(model)
    model(torch.randn(3, *RGB8.shape))
    logits = model(torch.randn(2, *RGB8.shape))
    features.remove_hooks()
    torch.testing.assert_close(model.fc(features.take(logits)), logits)
    assert features.take(logits) is logits


@pytest.mark.parametrize("fuse", [True, False])
def test_the_teacher_gives_the_features_of_the_model(fuse):
    model, images = small_residual(), torch.randn(3, *RGB8.shape)
    expected = penultimate_features(model, images)[1]
    teacher = FrozenTeacher(trace(model, RGB8.shape), "gaussian_kl", fuse)
    match = teacher.forward_with_batch_norm_loss(images.clone().requires_grad_())
    torch.testing.assert_close(match.features, expected)
    assert match.features.requires_grad
    teacher.remove_hooks()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_teacher_sees_a_last_convolution_that_it_froze():
    head = (nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head).eval()
    images = torch.randn(2, *RGB8.shape)
    match = FrozenTeacher(trace(model, RGB8.shape), "mse", fuse=True).forward_with_batch_norm_loss(
        images.clone().requires_grad_()
    )
    torch.testing.assert_close(match.features, model[:3](images).mean((2, 3)))
