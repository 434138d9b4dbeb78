"""Fifty steps with the native core: each has the losses and gradients that plain torch finds."""

import pytest
import torch
from small_training import STAGES, new_training

from zscgan_ext.ops import implementation as choice

STEPS = 50


def loss_and_gradients(training, inputs, seed):
    """Loss and gradients of a training's parameters on these inputs, with this noise."""
    torch.manual_seed(seed)
    loss, _ = training.measure(*inputs)
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)


def learner(training):
    """The module that learns, with everything that it stores."""
    return training.generator if hasattr(training, "generator") else training.student


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients_are_those_of_plain_torch(stage, monkeypatch):
    native = new_training(stage)
    monkeypatch.setattr(choice, "REQUESTED", "reference")
    plain = new_training(stage)
    for step in range(STEPS):
        learner(plain).load_state_dict(learner(native).state_dict())
        inputs = native.inputs()
        expected = loss_and_gradients(plain, inputs, step)
        learner(plain).load_state_dict(learner(native).state_dict())
        monkeypatch.setattr(choice, "REQUESTED", "native")
        loss, gradients = loss_and_gradients(native, inputs, step)
        assert loss.item() == pytest.approx(expected[0].item(), rel=1e-4)
        # A bias before a batch norm has no gradient but what rounding makes of it.
        rounding = 1e-6 * max(theirs.norm() for theirs in expected[1] if theirs is not None)
        for ours, theirs in zip(gradients, expected[1], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + rounding
        native.take(*inputs)
        monkeypatch.setattr(choice, "REQUESTED", "reference")
