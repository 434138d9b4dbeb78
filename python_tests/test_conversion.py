"""From a float classifier to a quantized one: where quantizers stand and what they compute."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import RGB8, as_trained, normal_batches, small_residual
from tensors import sample
from torch import nn

from zscgan_ext import ops
from zscgan_ext.errors import InputError
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert, folded
from zscgan_ext.quantization.quantizers import QuantizedLayer, best_symmetric_scale
from zscgan_ext.quantization.scheme import QuantRange, Scheme
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

LAYERS = ["stem", "depthwise", "project", "fc"]


def deploy(weights=4, activations=4):
    return Scheme("deploy", weights, activations)


def paper(weights=4, activations=4):
    return Scheme("paper", weights, activations)


@torch.no_grad()
def zoo_classifier(name):
    """A zoo architecture with random weights and the statistics that normal images give it."""
    torch.manual_seed(0)
    model = as_trained(BUNDLED_CLASSIFIERS[name].build()).train()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 1
    model(next(normal_batches(1, 64, 1, 28, 28, seed=1))[0])
    return model.eval()


def float_logits(student, images):
    """The logits of the converted graph with the weights as they are."""
    with torch.no_grad():
        return student.graph(images)


def convert_small(scheme, model=None):
    """The converted small model and its layers and activation quantizers by name."""
    student = convert(model or small_residual(), scheme, RGB8.shape)
    layers = {name: student.graph.get_submodule(name) for name in LAYERS}
    return student, layers, dict(student.graph.get_submodule("activation_quantizers").items())


def integers(quantizer):
    return quantizer.quant_range.quant_min, quantizer.quant_range.quant_max


@pytest.mark.parametrize("scheme", [deploy(), paper()], ids=["deploy", "paper"])
@pytest.mark.parametrize("name", BUNDLED_CLASSIFIERS)
def test_without_quantizers_the_graph_is_the_classifier(name, scheme):
    model = zoo_classifier(name)
    student = convert(model, scheme, (1, 28, 28))
    images = sample(4, 1, 28, 28)
    expected = model(images)
    scale = expected.abs().max()
    assert (float_logits(student, images) - expected).abs().max() < 1e-5 * scale
    folded = not any(isinstance(m, nn.BatchNorm2d) for m in student.modules())
    assert folded == scheme.folds_batch_norm
    assert len(student.layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())


@pytest.mark.parametrize("name_of_scheme", ["deploy", "paper"])
@pytest.mark.parametrize("name", BUNDLED_CLASSIFIERS)
def test_eight_bits_change_little(name, name_of_scheme):
    model = zoo_classifier(name)
    images = next(normal_batches(1, 16, 1, 28, 28))[0]
    expected = model(images)
    errors = {}
    for bits in (5, 8):
        student = convert(model, Scheme(name_of_scheme, bits, bits), (1, 28, 28))
        calibrate(student, iter([(images, None)]), 1)
        with torch.no_grad():
            errors[bits] = (student(images) - expected).square().mean().sqrt()
    assert errors[8] < 0.35 * expected.std(0).mean()  # of a logit over images
    assert 0 < errors[8] < 0.5 * errors[5]


def test_the_classifier_is_left_alone():
    model = small_residual()
    before = copy.deepcopy(model.state_dict())
    student = convert(model, deploy(), RGB8.shape)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules())


def test_deploy_quantizes_what_an_int8_runtime_does():
    _, _, quantizers = convert_small(deploy())
    assert set(quantizers) == {"images", "relu", "relu6", "project", "add", "pool"}


def test_paper_quantizes_results_of_rectifiers_alone():
    _, _, quantizers = convert_small(paper())
    assert set(quantizers) == {"relu", "relu6"}


def test_deploy_gives_eight_bits_to_both_ends():
    _, layers, quantizers = convert_small(deploy(3, 5))
    assert {name: integers(layer) for name, layer in layers.items()} == {
        "stem": (-127, 127),
        "depthwise": (-3, 3),
        "project": (-3, 3),
        "fc": (-127, 127),
    }
    widths = {name: integers(quantizer) for name, quantizer in quantizers.items()}
    ends = {"images": (0, 255), "pool": (0, 255)}
    assert widths == dict.fromkeys(quantizers, (0, 31)) | ends


def test_paper_has_one_width():
    _, layers, quantizers = convert_small(paper(3, 5))
    assert {integers(layer) for layer in layers.values()} == {(0, 7)}
    assert {integers(quantizer) for quantizer in quantizers.values()} == {(0, 31)}


def test_folding_by_hand():
    model = small_residual()
    _, layers, _ = convert_small(deploy(), model)
    for name in ("stem", "depthwise", "project"):
        conv, norm = model.get_submodule(name), model.get_submodule(f"{name}_bn")
        factor = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).float()
        bias = 0 if conv.bias is None else conv.bias
        folded = layers[name].layer
        torch.testing.assert_close(folded.weight.detach(), conv.weight * factor.view(-1, 1, 1, 1))
        torch.testing.assert_close(
            folded.bias.detach(), norm.bias + (bias - norm.running_mean) * factor
        )


def quantized_weight(layer, scale, zero_point):
    """What torch's own op makes of a layer's weight."""
    return torch.fake_quantize_per_channel_affine(
        layer.layer.weight, scale, zero_point.int(), 0, *integers(layer)
    )


def quantized_activation(x, quantizer):
    """What torch's own op makes of an activation."""
    scale, zero_point = quantizer.log_scale.exp().item(), int(quantizer.zero_point)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *integers(quantizer))


@torch.no_grad()
def test_deploy_computes_what_is_written_out_here():
    student, layers, quantizers = convert_small(deploy())
    calibrate(student, normal_batches(2, 8, *RGB8.shape), 2)
    images = sample(4, *RGB8.shape)
    w = {
        name: quantized_weight(layer, layer.log_scale.exp(), layer.zero_point)
        for name, layer in layers.items()
    }
    b = {name: layer.layer.bias for name, layer in layers.items()}
    q = {name: lambda x, o=o: quantized_activation(x, o) for name, o in quantizers.items()}
    x = q["relu"](F.conv2d(q["images"](images), w["stem"], b["stem"], padding=1).relu())
    hidden = F.conv2d(x, w["depthwise"], b["depthwise"], padding=1, groups=8)
    projected = F.conv2d(q["relu6"](F.relu6(hidden)), w["project"], b["project"])
    pooled = q["pool"](q["add"](x + q["project"](projected)).mean((2, 3)))
    expected = F.linear(pooled, w["fc"], b["fc"])
    torch.testing.assert_close(student(images), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_paper_computes_what_is_written_out_here():
    model = small_residual()
    student, layers, quantizers = convert_small(paper(), model)
    calibrate(student, normal_batches(2, 8, *RGB8.shape), 2)
    images = sample(4, *RGB8.shape)
    reference = copy.deepcopy(model)
    for name, layer in layers.items():
        rows = layer.layer.weight.flatten(1)
        low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
        scale = (high - low) / 15
        weight = quantized_weight(layer, scale, (-low / scale).round())
        reference.get_submodule(name).weight.copy_(weight)
    for name, quantizer in quantizers.items():
        reference.get_submodule(name).register_forward_hook(
            lambda _, inputs, y, quantizer=quantizer: quantized_activation(y, quantizer)
        )
    torch.testing.assert_close(student(images), reference(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_scales_have_nearly_the_least_error(bits):
    largest = 2 ** (bits - 1) - 1
    weight = sample(6, 40, dtype=torch.float32) * torch.logspace(-3, 2, 6)[:, None]

    def error(scale):
        rounded = (weight / scale[:, None]).round().clamp(-largest, largest) * scale[:, None]
        return (rounded - weight).square().sum(1)

    clips_nothing = weight.abs().amax(1) / largest
    exhaustive = torch.stack([error(clips_nothing * f) for f in torch.linspace(1, 0.05, 400)])
    found = error(best_symmetric_scale(weight, QuantRange(-largest, largest)))
    assert (found <= error(clips_nothing) * (1 + 1e-5)).all()
    assert (found <= 1.25 * exhaustive.amin(0)).all()
    if bits < 8:
        assert found.sum() < 0.95 * error(clips_nothing).sum()


def test_weights_of_zero_have_a_positive_scale():
    scale = best_symmetric_scale(torch.zeros(3, 4), QuantRange(-7, 7))
    assert (scale > 0).all()
    assert scale.isfinite().all()


def test_a_channel_of_zeros_has_a_scale_like_all_others():
    weight = torch.stack([torch.zeros(4), *torch.randn(5, 4)])
    scale = best_symmetric_scale(weight, QuantRange(-7, 7))
    assert torch.equal(scale[1:], best_symmetric_scale(weight[1:], QuantRange(-7, 7)))
    assert scale[1:].min() <= scale[0] <= scale[1:].max() * 4
    channel = nn.Parameter(weight[:1] + 1e-4)  # after a step of Adam
    assert not ops.fake_quantize(channel, scale[:1], torch.zeros(1), -7, 7, 0).any()


class Twice(nn.Module):
    """One convolution used twice, each time with a batch norm of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x)))).flatten(1)


@pytest.mark.parametrize("scheme", [deploy(), paper()], ids=["deploy", "paper"])
def test_a_layer_used_twice_stays_one(scheme):
    model = as_trained(Twice())
    student = convert(model, scheme, (3, 4, 4))
    assert len(student.layers) == 1
    images = sample(2, 3, 4, 4)
    torch.testing.assert_close(float_logits(student, images), model(images))


class Branching(nn.Module):
    """Chooses by the values that pass."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(x) if x.sum() > 0 else x


def test_a_classifier_without_a_graph_is_refused():
    message = r"^classifier: torch\.fx cannot trace it .+torch\.export cannot.+branches on values$"
    with pytest.raises(InputError, match=message):
        convert(as_trained(Branching()), deploy(), (3, 4, 4))


def test_a_classifier_without_layers_is_refused():
    model = as_trained(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()))
    with pytest.raises(InputError, match=r"^classifier: holds no convolution or linear layer"):
        convert(model, deploy(), (3, 4, 4))


def test_a_folded_classifier_has_the_same_logits_and_is_a_frozen_copy():
    model = small_residual()
    images = sample(4, *RGB8.shape)
    copy = folded(model, RGB8.shape)
    torch.testing.assert_close(copy(images), model(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 3


@pytest.mark.parametrize("rectify", [torch.relu_, F.relu_], ids=["torch", "functional"])
def test_an_activation_in_place_gets_one_quantizer(rectify):
    class PendingClamp(nn.Sequential):
        def forward(self, x):
            return self[1](rectify(self[0](x)).flatten(1))

    model = as_trained(PendingClamp(nn.Conv2d(3, 2, 3), nn.Linear(72, 5)))
    student = convert(model, deploy(), RGB8.shape)
    assert len(student.activation_quantizers) == 2  # of the images and of the activation
    fused = [node.kwargs.get("activation") for node in student.fused.graph.nodes]
    assert fused.count("relu") == 1


def test_moving_a_student_moves_the_graph_that_it_executes():
    class Centered(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 5))
            self.register_buffer("center", torch.full((3, 1, 1), 0.5))

        def forward(self, x):
            return super().forward(x - self.center)

    student = convert(as_trained(Centered()), deploy(), RGB8.shape).to("meta")
    assert student(torch.empty(2, *RGB8.shape, device="meta")).device.type == "meta"


class NormalizesItself(nn.Module):
    """A classifier that takes pixels and normalizes them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten())
        self.last = nn.Linear(72, 5)

    def forward(self, x):
        return self.last(self.features((x - 0.5) / 0.25))


def bits_of_activations(model):
    student = convert(as_trained(model), deploy(), RGB8.shape)
    return {
        name: quantizer.quant_range.bits
        for name, quantizer in student.graph.activation_quantizers.items()
    }


def test_all_that_is_computed_before_the_first_layer_has_eight_bits():
    bits = bits_of_activations(NormalizesItself())
    assert len(bits) == 4  # images, difference, quotient, activation
    assert set(bits.values()) == {8}  # the activation is what the last layer reads

    padded = nn.Conv2d(3, 2, 3, padding=1)
    middle = (nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU())
    ends = (nn.Flatten(), nn.Linear(32, 5))
    bits = bits_of_activations(nn.Sequential(nn.BatchNorm2d(3), padded, *middle, *ends))
    assert list(bits.values()) == [8, 8, 4, 4, 8]


POOLED = (nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 5, 3))


@pytest.mark.parametrize(
    "after",
    [
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LogSoftmax(1)),
        (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (nn.BatchNorm2d(5), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Softmax(1)),
    ],
)
@pytest.mark.parametrize("scheme", ["deploy", "paper"])
def test_logits_and_what_is_computed_from_them_stay_in_floats(scheme, after):
    model = as_trained(nn.Sequential(*POOLED, *after))
    student = convert(model, Scheme(scheme, 4, 4), RGB8.shape)
    quantized = ["input_1", "_1"] if scheme == "deploy" else ["_1"]  # images, first activation
    assert list(student.graph.activation_quantizers) == quantized


class TwoHeads(nn.Module):
    """A classifier whose logits are the mean of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten())
        self.first, self.second = nn.Linear(72, 5), nn.Linear(72, 5)

    def forward(self, x):
        x = self.body(x)
        return (self.first(x) + self.second(x)) / 2


def test_logits_of_several_heads_stay_in_floats():
    assert len(bits_of_activations(TwoHeads())) == 2  # images and activation


@pytest.mark.parametrize("scheme", [deploy(), paper()], ids=["deploy", "paper"])
def test_weights_are_quantized_only_within_their_context(scheme):
    student, layers, _ = convert_small(scheme)
    x = sample(2, *RGB8.shape)
    stem = layers["stem"]
    floats = stem(x)
    with pytest.raises(ValueError, match="stop"), student.quantized_weights():  # noqa: PT012
        assert not torch.equal(stem(x), floats)
        raise ValueError("stop")
    assert torch.equal(stem(x), floats)


@pytest.mark.parametrize("scheme", [deploy(), paper()], ids=["deploy", "paper"])
def test_a_call_within_the_context_leaves_its_weights(scheme):
    student, layers, _ = convert_small(scheme)
    x = sample(2, *RGB8.shape)
    with student.quantized_weights():
        expected = layers["stem"](x)
        student(x)
        assert torch.equal(layers["stem"](x), expected)


@pytest.mark.parametrize("scheme", [deploy(), paper()], ids=["deploy", "paper"])
def test_asking_for_qparams_writes_nothing(scheme):
    student = convert_small(scheme)[0]
    before = copy.deepcopy(student.state_dict())
    for quantizer in (*student.layers, *student.activation_quantizers):
        scale, zero_point = quantizer.qparams()
        assert scale.shape == zero_point.shape
    assert all(torch.equal(own, before[name]) for name, own in student.state_dict().items())


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_layers_in_bfloat16(stride):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, stride, padding=1, groups=16)
    quantized = QuantizedLayer(layer, QuantRange(-127, 127), symmetric=True)
    x = sample(2, 16, 9, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = quantized(x.bfloat16())
    assert y.dtype == torch.bfloat16
    given = sample(*y.shape, seed=1)
    wanted = (x, layer.weight)
    expected = torch.autograd.grad(layer(x), wanted, given)
    for ours, true in zip(torch.autograd.grad(y, wanted, given.bfloat16()), expected, strict=True):
        assert (ours - true).abs().max() <= 0.02 * true.abs().max()
