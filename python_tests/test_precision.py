"""The dtype of forward passes, and steps of an optimizer under it."""

import pytest
import torch
from torch import nn
from zscgan_ext.training.precision import PRECISIONS, Precision

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_and_optimizer():
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    return model, torch.optim.SGD(model.parameters(), lr=0.25)


def test_there_are_three():
    assert PRECISIONS == DTYPES


@pytest.mark.parametrize("name", PRECISIONS)
def test_forward_passes_have_the_dtype(name):
    model, _ = model_and_optimizer()
    precision = Precision(name, CPU)
    with precision.autocast():
        assert model(torch.ones(3, 2)).dtype == DTYPES[name]
    assert model(torch.ones(3, 2)).dtype == torch.float32
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_step_goes_down_the_gradient(name):
    model, optimizer = model_and_optimizer()
    precision = Precision(name, CPU)
    for taken in (1, 2):
        with precision.autocast():
            loss = model(torch.tensor([[1.0, 2.0]])).float().sum() / 16
        precision.step(loss, optimizer)
        # The gradient is (1/16, 1/8) each time; nothing of the first step is left in the second.
        expected = torch.tensor([[0.5 - taken / 64, 0.5 - taken / 32]])
        torch.testing.assert_close(model.weight.detach(), expected)


def test_float16_skips_a_step_whose_gradient_overflows():
    model, optimizer = model_and_optimizer()
    precision = Precision("float16", CPU)
    scale = precision.scaler.get_scale()
    precision.step(model(torch.tensor([[torch.inf, 1.0]])).sum(), optimizer)
    assert torch.equal(model.weight.detach(), torch.full((1, 2), 0.5))
    assert precision.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_only_float16_scales_its_loss(name):
    assert not Precision(name, CPU).scaler.is_enabled()
