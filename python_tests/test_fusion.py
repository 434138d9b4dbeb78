"""The fused graph: fewer nodes, the same numbers, the same modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import RGB8, as_trained, normal_batches, small_residual
from tensors import sample
from torch import nn

from zscgan_ext.config.configs import FineTuningConfig
from zscgan_ext.ops import implementation
from zscgan_ext.quantization import quantizers
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.fine_tuning import student_loss
from zscgan_ext.quantization.quantized_classifier import BoundGraph
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

SCHEMES = [Scheme("deploy", 4, 4), Scheme("paper", 4, 4)]
ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6(),
    "ReLU6 in place": nn.ReLU6(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu by position": lambda x: F.relu(x, True),
    "F.relu6": F.relu6,
    "F.relu6 in place": lambda x: F.relu6(x, inplace=True),
    "torch.relu": torch.relu,
    "relu": lambda x: x.relu(),
    "relu_": lambda x: x.relu_(),
}


class Net(nn.Module):
    """A classifier around a function of two convolutions, an activation and x."""

    def __init__(self, body, activation=None):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)
        self.activation = activation
        self.body = body

    def forward(self, x):
        return self.fc(self.body(self, x).mean((2, 3)))


def plain(net, x):
    """Convolution, batch norm and activation."""
    return net.second(net.activation(net.norm(net.first(x))))


def residual(net, x):
    """A sum and an activation that may both overwrite their input."""
    first = net.norm(net.first(x))
    total = net.second(first)
    total += first
    return net.activation(total)


def twice(net, x):
    """One activation in two places."""
    return net.activation(net.second(net.activation(net.first(x))))


def on_a_branch(net, x):
    """The convolution's result has another user than the activation."""
    first = net.norm(net.first(x))
    return net.second(F.relu(first)) + first


def both_used(net, x):
    """The activation's result is used before its quantizer sees it: as an input twice."""
    first = F.relu(net.norm(net.first(x)))
    return net.second(first) + first


def through_a_view(net, x):
    """The activation overwrites memory that another node reads afterwards."""
    first = net.norm(net.first(x))
    view = first.flatten(2).relu_()
    return net.second(first) + view.unflatten(2, (8, 8))


@pytest.fixture(autouse=True)
def seeded():
    """Give models the same weights in every test."""
    torch.manual_seed(0)


def converted(model, scheme, enabled=True):
    """A calibrated student of a small model, its activations quantized or not."""
    student = convert(as_trained(model), scheme, RGB8.shape)
    calibrate(student, normal_batches(2, 8, *RGB8.shape), 2)
    student.quantize_activations(enabled)
    return student


def as_traced(student):
    """A copy that executes every node."""
    student = copy.deepcopy(student)
    student.fused = BoundGraph(student.graph, copy.deepcopy(student.graph.graph))
    return student


def rectifiers(graph):
    """Names of the nodes that are a ReLU or ReLU6."""
    return [node.name for node in graph.graph.nodes if node.target in (F.relu, F.relu6)]


def logits_and_gradients(student):
    """Results and gradients on some images, with a state that observers changed."""
    images = sample(4, *RGB8.shape).requires_grad_()
    logits = student(images)
    parameters = dict(student.named_parameters())
    incoming = sample(*logits.shape, seed=1)
    wanted = (images, *parameters.values())
    gradients = torch.autograd.grad(logits, wanted, incoming, allow_unused=True)
    found = dict(zip(("images", *parameters), gradients, strict=True))
    return (
        {"logits": logits} | found | {f"state of {k}": v for k, v in student.state_dict().items()}
    )


def assert_same(student, expected):
    """Require two students to have the same bits."""
    actual, wanted = logits_and_gradients(student), logits_and_gradients(expected)
    assert actual.keys() == wanted.keys()
    for name, values in wanted.items():
        if values is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(actual[name], values, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("body", [plain, residual], ids=lambda f: f.__name__)
def test_every_form_of_an_activation_is_fused(body, name, scheme, enabled):
    student = converted(Net(body, ACTIVATIONS[name]), scheme, enabled)
    assert len(rectifiers(student.graph)) == 1
    assert rectifiers(student.fused) == []
    assert_same(student, as_traced(student))


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_what_others_see_is_not_fused(scheme, enabled):
    student = converted(Net(on_a_branch), scheme, enabled)
    assert rectifiers(student.fused) == rectifiers(student.graph) != []
    assert_same(student, as_traced(student))


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_what_is_overwritten_through_a_view_is_seen_by_all(scheme, enabled):
    net = Net(through_a_view)
    student = converted(net, scheme, enabled)
    assert_same(student, as_traced(student))
    unrounded = convert(net, scheme, RGB8.shape)
    images = sample(4, *RGB8.shape)
    logits = unrounded.fused(images)
    torch.testing.assert_close(logits, net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_a_quantized_result_may_have_many_users(scheme):
    student = converted(Net(both_used), scheme)
    assert rectifiers(student.fused) == []
    assert_same(student, as_traced(student))


def test_one_module_in_two_places_is_fused_in_both():
    student = converted(Net(twice, nn.ReLU()), SCHEMES[0])
    assert len(rectifiers(student.graph)) == 2
    assert rectifiers(student.fused) == []
    assert_same(student, as_traced(student))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", BUNDLED_CLASSIFIERS)
def test_the_bundled_classifiers_keep_no_rectifier(name, scheme):
    student = convert(BUNDLED_CLASSIFIERS[name].build().eval(), scheme, (1, 28, 28))
    assert rectifiers(student.graph)
    assert rectifiers(student.fused) == []


def test_the_fused_graph_has_no_modules_of_its_own():
    student = converted(small_residual(), SCHEMES[0])
    for model in (student, copy.deepcopy(student), student.double()):
        own = {id(value) for value in (*model.parameters(), *model.buffers())}
        held = (*model.fused.owner.parameters(), *model.fused.owner.buffers())
        assert {id(value) for value in held} <= own
        assert all(key.startswith("graph.") for key in model.state_dict())
        images = sample(2, *RGB8.shape).to(next(model.parameters()).dtype)
        assert torch.equal(model(images), as_traced(model)(images))


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("name", ["ReLU", "ReLU6 in place"])
def test_a_bias_added_later_changes_rounding_alone(monkeypatch, name, enabled):
    student = converted(Net(plain, ACTIVATIONS[name]), SCHEMES[0], enabled)
    wanted = logits_and_gradients(as_traced(student))
    monkeypatch.setattr(quantizers, "adds_bias_later", lambda x: True)
    biased = [node for node in student.fused.graph.nodes if "bias" in node.kwargs]
    assert len(biased) == 1
    actual = logits_and_gradients(student)
    for key, values in wanted.items():
        torch.testing.assert_close(actual[key], values, rtol=1e-4, atol=1e-5, msg=key)
    assert actual["graph.first.layer.bias"].abs().max() > 0


def test_a_bias_added_later_is_not_added_by_the_convolution(monkeypatch):
    student = converted(Net(plain, nn.ReLU()), SCHEMES[0])
    monkeypatch.setattr(quantizers, "adds_bias_later", lambda x: True)
    layer, images = student.graph.first, sample(2, *RGB8.shape)
    with student.quantized_weights():
        difference = layer(images) - layer(images, defer_bias=True)
    bias = layer.layer.bias.view(-1, 1, 1).expand_as(difference)
    torch.testing.assert_close(difference, bias, rtol=1e-4, atol=1e-5)


def losses_of_steps(student, teacher, count=6):
    """Train a student for some steps; return its losses and the last gradients."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    losses = []
    for images, labels in normal_batches(count, 16, 1, 28, 28, seed=3):
        loss = student_loss(student(images), teacher(images).detach(), labels, FineTuningConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: value.grad for name, value in student.named_parameters()}


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", BUNDLED_CLASSIFIERS)
def test_steps_are_those_of_the_unfused_reference(monkeypatch, name, scheme):
    teacher = as_trained(BUNDLED_CLASSIFIERS[name].build())
    eight_bits = Scheme(scheme.name, 8, 8)
    student = convert(teacher, eight_bits, (1, 28, 28))
    calibrate(student, normal_batches(1, 16, 1, 28, 28), 1)
    plain_student = as_traced(student)
    losses, gradients = losses_of_steps(student, teacher)
    monkeypatch.setattr(implementation, "REQUESTED", "reference")
    expected, expected_gradients = losses_of_steps(plain_student, teacher)
    assert losses == pytest.approx(expected, rel=1e-4)
    for key, gradient in gradients.items():
        wanted = expected_gradients[key]
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm() + 1e-9, key
