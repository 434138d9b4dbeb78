"""Every operator that export knows, in ONNX Runtime against torch."""

import pytest
import torch
import torch.nn.functional as F
from exported import calibrated, noise, small_classifier
from networks import RGB8, as_trained
from onnx_functions import IN_THE_WILD
from torch import nn

from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.errors import InputError
from zscgan_ext.export.node_by_node import product_step
from zscgan_ext.export.onnx.model import float_model, quantized_model
from zscgan_ext.export.onnx.runtime import OnnxClassifier
from zscgan_ext.export.onnx.verification import compare_nodes


class Between(nn.Module):
    """A convolution, some function of its four channels of 8x8, and a sum over the image."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function

    def forward(self, images):
        return torch.flatten(self.function(self.conv(images)), 1)


def split_and_join(x):
    first, second = torch.chunk(x, 2, dim=1)
    return torch.cat([second, first * 2], dim=1)


def split_by_size(x):
    parts = x.split([1, 3], 1)
    return torch.cat([parts[1], parts[0]], 1)


def shuffle_by_view(x):
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def squeeze_excite(x):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


FUNCTIONS = {
    "relu": F.relu,
    "relu method": lambda x: x.relu(),
    "relu6": F.relu6,
    "ReLU6": nn.ReLU6(),
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.4),
    "Hardtanh": nn.Hardtanh(-0.1, 0.6),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "Mish": nn.Mish(),
    "silu": F.silu,
    "SiLU": nn.SiLU(),
    "gelu": F.gelu,
    "GELU through tanh": nn.GELU(approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "ELU": nn.ELU(0.7),
    "PReLU": nn.PReLU(4, 0.3),
    "softmax": lambda x: torch.softmax(x, dim=1),
    "number plus tensor": lambda x: 1.5 + x,
    "sub": lambda x: x - 0.25,
    "division": lambda x: x / 4,
    "squeeze and excite": squeeze_excite,
    "cat": lambda x: torch.cat([x, x + 1], 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
    "AvgPool2d without padding in the mean": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "AvgPool2d, ceil_mode": nn.AvgPool2d(3, 2, ceil_mode=True),
    "AdaptiveAvgPool2d to one": nn.AdaptiveAvgPool2d(1),
    "AdaptiveAvgPool2d to four": nn.AdaptiveAvgPool2d(4),
    "AdaptiveAvgPool2d to three and eleven": nn.AdaptiveAvgPool2d((3, 11)),
    "AdaptiveMaxPool2d": nn.AdaptiveMaxPool2d((2, 1)),
    "slices": lambda x: x[:, 1:3, ::2, -1],
    "slices from the end": lambda x: x[..., 2:-3].contiguous()[:, -1:, None],
    "pad": lambda x: F.pad(x, (1, 0, 2, 3)),
    "pad with a number": lambda x: F.pad(x, (1, 2), value=1.5),
    "pad, reflecting": lambda x: F.pad(x, (1, 2, 0, 3), mode="reflect"),
    "ReplicationPad2d": nn.ReplicationPad2d((1, 2, 0, 3)),
    "ZeroPad2d": nn.ZeroPad2d((1, 2, 0, 3)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "interpolate, bilinear": lambda x: F.interpolate(x, (5, 12), mode="bilinear"),
    "Upsample, aligned": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "einsum": lambda x: torch.einsum("n c h w, n d h w -> n c d", x, x),
    "matmul": lambda x: x @ x.transpose(-2, -1),
    "LayerNorm": nn.LayerNorm((8, 8)),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "GroupNorm": nn.GroupNorm(2, 4, affine=False),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "expand_as": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "stack and unbind": lambda x: torch.stack(x.unbind(1)[::-1], -1),
    "sum": lambda x: x.sum((1, 3)),
    "amax": lambda x: x.amax(2, keepdim=True),
    "power": lambda x: (x * x + 1) ** 0.5,
    "exponential": lambda x: torch.exp(-x),
    "mean over the image": lambda x: x.mean([2, 3]),
    "mean over channels": lambda x: x.mean(1),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, padding=1),
    "MaxPool2d, dilated": nn.MaxPool2d(2, 1, dilation=2, ceil_mode=True),
    "reshape": lambda x: x.reshape(x.shape[0], 2, -1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "permute by a tuple": lambda x: torch.permute(x, (0, 3, 1, 2)),
    "squeeze": lambda x: x.mean((2, 3), keepdim=True).squeeze(3).unsqueeze(1),
    "ChannelShuffle": nn.ChannelShuffle(2),
    "shuffle by view": shuffle_by_view,
    "chunk and cat": split_and_join,
    "split by size": split_by_size,
    "Dropout and Identity": nn.Sequential(nn.Dropout(0.4), nn.Identity()),
    "BatchNorm2d": nn.BatchNorm2d(4),
    "resized by a factor": lambda x: F.interpolate(x, scale_factor=1.3),
    "resized by a factor, bilinear": lambda x: F.interpolate(x, None, (1.3, 1.7), "bilinear"),
    "resized by a computed factor": lambda x: F.interpolate(
        x, scale_factor=1.3, recompute_scale_factor=True
    ),
    "Upsample by a factor": nn.Upsample(scale_factor=1.3, mode="bilinear"),
    "convolution of groups": nn.Conv2d(4, 8, 3, stride=2, padding=(1, 2), dilation=2, groups=2),
    "convolution, same": nn.Conv2d(4, 2, (3, 5), padding="same", bias=False),
    "convolution, reflecting": nn.Conv2d(4, 2, 3, padding=(1, 2), padding_mode="reflect"),
    "convolution, repeating the edge": nn.Conv2d(4, 2, 3, padding=2, padding_mode="replicate"),
    "convolution, circular": nn.Conv2d(4, 2, 3, padding="same", padding_mode="circular"),
    "convolution, one dimension": lambda x: F.conv1d(x.flatten(2), torch.ones(3, 4, 5), padding=2),
    "transposed convolution": nn.ConvTranspose2d(
        4, 6, 3, stride=2, padding=1, output_padding=1, groups=2
    ),
    "Linear on the width": nn.Linear(8, 2),
    "Linear": nn.Sequential(nn.Flatten(), nn.Linear(256, 7), nn.ReLU(), nn.Linear(7, 3)),
    **IN_THE_WILD,
}


def exported(function):
    """A small network around a function, in torch and in ONNX Runtime."""
    torch.manual_seed(0)
    model = as_trained(Between(function))
    count = model(torch.zeros(1, *RGB8.shape)).shape[1]
    classifier = Classifier("between", model, count, RGB8, ())
    onnx_model = float_model(trace(model, RGB8.shape), classifier)
    return model, OnnxClassifier(onnx_model.SerializeToString())


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operator_computes_what_torch_does(name):
    model, session = exported(FUNCTIONS[name])
    for batch_size in (1, 5):
        images = torch.randn(batch_size, *RGB8.shape)
        torch.testing.assert_close(session(images), model(images), rtol=1e-5, atol=1e-5)


UNSUPPORTED = {
    "erfinv": (torch.erfinv, r"erfinv \(erfinv\) has no ONNX form"),
    "module": (nn.FractionalMaxPool2d(2, 2), r"function \(fractional_max_pool2d\) has no ONNX"),
    "by truth values": (lambda x: x[:, torch.tensor([True, False] * 2)], "by truth values"),
    "by two tensors": (
        lambda x: x[:, torch.tensor([0, 2]), torch.tensor([0, 2])],
        r"getitem \(getitem\) takes a part of a tensor by several kinds",
    ),
    "antialias": (
        lambda x: F.interpolate(x, 5, mode="bilinear", antialias=True),
        "resizes in the mode 'bilinear' with antialias=True",
    ),
    "batch": (lambda x: torch.chunk(x, 1, 0)[0], r"chunk \(chunk\) has no ONNX form"),
    "count of images": (lambda x: x / x.shape[0], "depends on the images or on their count"),
    "numbers of the images": (lambda x: x / x.sum().item(), "depends on the images or on their"),
    "index of images": (
        lambda x: x + torch.arange(x.shape[0])[:, None, None, None],
        "gives other numbers for 2 images than for 4",
    ),
    "places of maxima": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[1].float(),
        r"max_pool2d_with_indices \(max_pool2d_with_indices\) has no ONNX form",
    ),
    "causal": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        "has dropout, a causal mask or groups of queries",
    ),
    "double": (lambda x: x.double().mean(1).float(), "computes in float64"),
    "variance of all": (lambda x: x - x.var(), "takes all images together"),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize(("function", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_is_not_exported_is_named(function, message):
    with pytest.raises(InputError, match=message) as error:
        exported(function)
    assert "\n" not in str(error.value)


class BetweenQuantizers(nn.Module):
    """A function of four quantized channels, which another branch reads too, and a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function
        count = self.features(torch.zeros(1, *RGB8.shape)).shape[1]
        self.fc = nn.Linear(count, 5)

    def features(self, images):
        x = self.conv(images)
        return torch.cat([self.function(x).flatten(1), x.flatten(1)], 1)

    def forward(self, images):
        return self.fc(self.features(images))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bits", [4, 8])
def test_an_operator_between_quantizers_gives_the_integers_of_the_student(bits, name):
    torch.manual_seed(0)
    classifier = small_classifier(as_trained(BetweenQuantizers(FUNCTIONS[name]).eval()))
    student = calibrated(classifier, "deploy", bits, bits)
    model, grids = quantized_model(student, classifier)
    _, difference, _ = compare_nodes(student, model, grids, noise(classifier, 8, 2))
    assert difference <= product_step(student)
