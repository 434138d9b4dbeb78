"""Fifty steps with the native core: each has the losses and gradients that plain torch finds."""

import pytest
import torch
from small_training import STAGES, new_trainer

from zscgan_ext.ops import implementation as choice

STEPS = 50


def loss_and_gradients(trainer, batch, seed):
    """Loss and gradients of a trainer's parameters on this batch, with this noise."""
    torch.manual_seed(seed)
    loss, _ = trainer.loss(*batch)
    return loss.detach(), torch.autograd.grad(loss, trainer.parameters(), allow_unused=True)


def learner(trainer):
    """The module that learns, with everything that it stores."""
    return trainer.generator if hasattr(trainer, "generator") else trainer.student


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients_are_those_of_plain_torch(stage, monkeypatch):
    native = new_trainer(stage)
    monkeypatch.setattr(choice, "REQUESTED", "reference")
    plain = new_trainer(stage)
    for step in range(STEPS):
        learner(plain).load_state_dict(learner(native).state_dict())
        batch = native.sample()
        expected = loss_and_gradients(plain, batch, step)
        learner(plain).load_state_dict(learner(native).state_dict())
        monkeypatch.setattr(choice, "REQUESTED", "native")
        loss, gradients = loss_and_gradients(native, batch, step)
        assert loss.item() == pytest.approx(expected[0].item(), rel=1e-4)
        # A bias before a batch norm has no gradient but what rounding makes of it.
        rounding = 1e-6 * max(theirs.norm() for theirs in expected[1] if theirs is not None)
        for ours, theirs in zip(gradients, expected[1], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + rounding
        native.learn(*batch)
        monkeypatch.setattr(choice, "REQUESTED", "reference")
