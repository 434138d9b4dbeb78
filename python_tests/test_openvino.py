"""Exported files in OpenVINO: it has to compute what ONNX Runtime computes."""

import pytest
import torch
from exported import calibrated, noise, small_classifier
from networks import as_trained, small_residual
from torch import nn

from zscgan_ext.export.onnx.model import quantized_model
from zscgan_ext.export.onnx.runtime import OnnxClassifier


class ClampedBranches(nn.Module):
    """Branches of a sum that end in clamps around zero, and a gate of squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.other = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.gate = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        x = nn.functional.hardtanh(self.stem(images))
        x = nn.functional.hardtanh(self.one(x), -0.4, 0.9) + self.other(x).clamp(min=-0.5)
        x = x * nn.functional.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.fc(nn.functional.relu(x).mean((2, 3)))


def clamped_branches():
    torch.manual_seed(0)
    return as_trained(ClampedBranches())


@pytest.mark.parametrize("network", [small_residual, clamped_branches])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_openvino_computes_what_onnx_runtime_does(network, bits, openvino_classifier):
    classifier = small_classifier(network())
    model, _ = quantized_model(calibrated(classifier, "deploy", bits, bits), classifier)
    data = model.SerializeToString()
    images = torch.cat(noise(classifier))
    expected = OnnxClassifier(data)(images)
    torch.testing.assert_close(openvino_classifier(data)(images), expected, rtol=1e-5, atol=1e-6)
