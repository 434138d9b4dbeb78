"""Rewriting a frozen classifier's graph: which nodes are fused, and that nothing else changes."""

import operator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import as_trained
from tensors import channels_last, sample
from torch import nn

from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.matched_batch_norm import MatchedBatchNorm, matched_graph


def ignore(layer, mean, variance):
    """Take statistics that a test does not look at."""


class Block(nn.Module):
    """Two normalized convolutions, joined and activated by functions that a test chooses."""

    def __init__(self, join, activate):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.first_bn, self.second_bn = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.join, self.activate = join, activate

    def forward(self, x):
        shortcut = self.first_bn(self.first(x))
        return self.activate(self.join(self.second_bn(self.second(x)), shortcut))


def block(join, activate):
    torch.manual_seed(0)
    return as_trained(Block(join, activate))


JOINS = {
    "add": (operator.add, True),
    "torch.add": (torch.add, True),
    "method": (lambda a, b: a.add(b), True),
    "in place": (lambda a, b: a.add_(b), True),
    "reversed": (lambda a, b: b + a, True),
    "alpha": (lambda a, b: torch.add(a, b, alpha=2), True),
    "multiplied": (operator.mul, False),
    "number": (lambda a, b: (a + 1) * b, False),
    "seen by others": (lambda a, b: (a + b) * a * b, False),
    "broadcast": (lambda a, b: a + b.mean((2, 3), keepdim=True), True),
    "narrow": (lambda a, b: a.mean((2, 3), keepdim=True) + b, True),
}
ACTIVATIONS = {
    "none": (lambda x: x * 1, "none"),
    "relu": (F.relu, "relu"),
    "module": (nn.ReLU(inplace=True), "relu"),
    "method": (lambda x: x.relu_(), "relu"),
    "relu6": (F.relu6, "relu6"),
    "sigmoid": (torch.sigmoid, "none"),
    "seen twice": (lambda x: x.relu() - x, "none"),
}


def fused_layers(graph):
    return [module for module in graph.modules() if isinstance(module, MatchedBatchNorm)]


def traced(model):
    return trace(model, (3, 6, 6))


def takes_residual(graph):
    nodes = [n for n in graph.graph.nodes if n.op == "call_module" and "matched" in n.target]
    return any(len(node.args) == 2 for node in nodes)


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.clone, channels_last], ids=["NCHW", "channels_last"])
def test_values_and_gradients_are_those_of_hooks(join, activation, layout):
    model = traced(block(JOINS[join][0], ACTIVATIONS[activation][0]).double())
    outcomes = []
    for fuse in (True, False):
        teacher = FrozenTeacher(model, "gaussian_kl", fuse)
        assert (teacher.graph is not None) == fuse
        images = layout(sample(4, 3, 6, 6).double()).requires_grad_()
        y, distance, _ = teacher.forward_with_batch_norm_loss(images)
        gradient = torch.autograd.grad(y.square().mean() + 3 * distance, images)
        outcomes.append((y, distance, *gradient))
        teacher.remove_hooks()
    for fused, plain in zip(*outcomes, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_fused(join, activation):
    graph = matched_graph(traced(block(JOINS[join][0], ACTIVATIONS[activation][0])), ignore)
    assert len(fused_layers(graph)) == 2
    assert not any(type(module) is nn.BatchNorm2d for module in graph.children())
    fused = JOINS[join][1]
    assert takes_residual(graph) == fused
    wanted = ACTIVATIONS[activation][1] if fused else "none"
    assert wanted in [layer.activation for layer in fused_layers(graph)]


def test_an_addition_in_place_computes_the_sum_and_leaves_what_was_before():
    def join(a, b):
        double = b * 2
        b.add_(a)
        return b + double

    model = block(join, F.relu)
    images = sample(2, 3, 6, 6)
    torch.testing.assert_close(matched_graph(traced(model), ignore)(images), model(images))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "googlenet"])
def test_torchvision_classifiers(name):
    torch.manual_seed(0)
    settings = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = as_trained(getattr(torchvision.models, name)(num_classes=7, **settings))
    images = sample(2, 3, 64, 64)
    kinds = [type(module) for module in model.modules()]
    graph = matched_graph(trace(model, (3, 64, 64)), ignore)
    assert [type(module) for module in model.modules()] == kinds
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-4)
    left = [n for n in graph.graph.nodes if n.op == "call_module"]
    assert not any(isinstance(graph.get_submodule(n.target), nn.BatchNorm2d) for n in left)


def test_without_gradients_nothing_is_measured():
    calls = []
    graph = matched_graph(traced(block(operator.add, F.relu)), lambda *found: calls.append(found))
    images = sample(2, 3, 6, 6)
    graph(images)
    with torch.no_grad():
        graph(images.clone().requires_grad_())
    assert not calls
    graph(images.clone().requires_grad_())
    assert len(calls) == 2


class Branching(nn.Module):
    """A graph that depends on values."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(x) if x.sum() > 0 else self.bn(-x)


def test_what_was_not_traced_is_measured_by_hooks():
    teacher = FrozenTeacher(as_trained(Branching()), "mse")
    assert teacher.graph is None
    images = sample(4, 3, 5, 5).requires_grad_()
    _, distance, _ = teacher.forward_with_batch_norm_loss(images)
    (gradient,) = torch.autograd.grad(distance, images)
    assert gradient.abs().max() > 0


def test_a_layer_that_is_used_twice_is_measured_twice():
    layer = as_trained(nn.BatchNorm2d(3))
    model = trace(nn.Sequential(layer, nn.ReLU(), layer), (3, 5, 5))
    images = sample(4, 3, 5, 5)
    teachers = [FrozenTeacher(model, "mse", fuse) for fuse in (True, False)]
    values = [
        teacher.forward_with_batch_norm_loss(images.clone().requires_grad_())[1]
        for teacher in teachers
    ]
    torch.testing.assert_close(*values)
