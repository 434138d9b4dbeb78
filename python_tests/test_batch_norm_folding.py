"""Batch norm folded into layers beside it, against the unfolded network in float64."""

import pytest
import torch
from networks import as_trained
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.batch_norm_ranges import calibrate_from_batch_norm
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher

SHAPE = (4, 8, 8)


def trained(layers):
    torch.manual_seed(0)
    body = nn.Sequential(*layers, nn.Flatten())
    features = body.eval()(torch.zeros(1, *SHAPE)).shape[1]
    model = as_trained(nn.Sequential(body, nn.Linear(features, 3)))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


FOLDED = {
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)),
    "linear": (nn.Flatten(), nn.Linear(256, 7, bias=False), nn.BatchNorm1d(7)),
    "before a convolution": (nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)),
    "before a linear layer": (nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 5)),
}
KEPT = {
    "before padding": (nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
    "between functions": (nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()),
}


@pytest.mark.parametrize("name", [*FOLDED, *KEPT])
def test_folding_changes_no_logit(name):
    model = trained((FOLDED | KEPT)[name])
    student = convert(model, Scheme("deploy", 8, 8), SHAPE)
    assert any(isinstance(m, _BatchNorm) for m in student.modules()) == (name in KEPT)
    images = torch.randn(3, *SHAPE)
    torch.testing.assert_close(student.graph(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_a_batch_norm_may_lack_its_weight_or_bias(missing):
    model = trained((nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    setattr(model[0][1], missing, None)
    student = convert(model, Scheme("deploy", 8, 8), SHAPE)
    assert not any(isinstance(m, _BatchNorm) for m in student.modules())
    images = torch.randn(3, *SHAPE)
    torch.testing.assert_close(student.graph(images), model(images), rtol=1e-4, atol=1e-5)
    logits, distance, _ = FrozenTeacher(trace(model, SHAPE), "mse").forward_with_batch_norm_loss(
        images.requires_grad_()
    )
    assert distance.isfinite()
    torch.testing.assert_close(logits, model(images))
    random = torch.Generator().manual_seed(0)
    calibrate_from_batch_norm(student, model, Preprocessing(4, 8, (0.5,) * 4, (0.25,) * 4), random)
    assert student(images).isfinite().all()


def test_a_shared_pair_is_folded_once():
    conv, norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    model = trained((conv, norm, nn.ReLU(), conv, norm))
    student = convert(model, Scheme("deploy", 8, 8), SHAPE)
    assert not any(isinstance(m, _BatchNorm) for m in student.modules())
    images = torch.randn(3, *SHAPE)
    torch.testing.assert_close(student.graph(images), model(images), rtol=1e-4, atol=1e-5)
