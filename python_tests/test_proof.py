"""The proof of a graph: what is accepted, what is refused, and what is said then."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import RGB8, as_trained, small_residual
from torch import nn

from zscgan_ext.classifiers.proof import (
    Truth,
    check_independence,
    check_repeats,
    require_near,
    require_same,
)
from zscgan_ext.classifiers.symbolic_tracing import symbolic_graph
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.errors import InputError


@pytest.fixture
def truth():
    return Truth(small_residual(), RGB8.shape)


def changed(change):
    """A graph of the small classifier in which something was changed."""
    graph = symbolic_graph(copy.deepcopy(small_residual()))
    change(graph)
    graph.recompile()
    return graph


def test_the_graph_of_the_model_is_accepted_and_left_as_it_was(truth):
    """Its logits are those that the model gives, computed here without the proof."""
    graph = symbolic_graph(small_residual())
    before, images = graph.code, [batch.clone() for batch in truth.images]
    require_same(truth, graph)
    assert graph.code == before
    for batch, seen, logits in zip(images, truth.images, truth.logits, strict=True):
        assert torch.equal(seen, batch)
        assert torch.equal(small_residual()(batch), logits)
        assert torch.equal(graph(batch), logits)


class SumsInTwo(nn.Module):
    """A linear layer whose products are summed at once, or in two halves."""

    def __init__(self, halves):
        super().__init__()
        self.fc, self.halves = nn.Linear(192, 5), halves

    def forward(self, x):
        x, weight = x.flatten(1), self.fc.weight
        if self.halves:
            return x[:, :77] @ weight[:, :77].T + x[:, 77:] @ weight[:, 77:].T + self.fc.bias
        return self.fc(x)


def test_another_order_of_sums_is_accepted():
    whole, halves = SumsInTwo(False), SumsInTwo(True)
    halves.load_state_dict(whole.state_dict())
    truth, graph = Truth(whole, RGB8.shape), symbolic_graph(halves)
    assert not torch.equal(graph(truth.images[0]), truth.logits[0])
    require_same(truth, graph)


@pytest.mark.parametrize("change", [1e-5, 1e-3, 0.5])
def test_a_slightly_different_function_is_refused(truth, change):
    def scale(graph):
        graph.depthwise_bn.eps += change

    with pytest.raises(InputError, match=r"computes something else, before or in the layer depth"):
        require_same(truth, changed(scale))


def test_a_graph_that_overwrites_its_images_is_refused(truth):
    def overwrite(graph):
        images = next(iter(graph.graph.nodes))
        with graph.graph.inserting_after(images):
            graph.graph.call_function(torch.Tensor.mul_, (images, 1.5))

    with pytest.raises(InputError, match="overwrites the images"):
        require_same(truth, changed(overwrite))


def test_a_graph_that_changes_with_each_call_is_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.fc = nn.Linear(192, 5)

        def forward(self, x):
            self.calls.add_(1)
            return self.fc(x.flatten(1)) * self.calls

    with pytest.raises(InputError, match="answers differently each time it is called"):
        check_repeats(Truth(Counts(), RGB8.shape))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: x - 0.05 * x.mean(0),
        lambda x: x / x.abs().max(),
        lambda x: x + 0.1 * x[:1],
    ],
)
def test_answers_that_depend_on_other_images_are_refused(mixed):
    class Mixes(nn.Sequential):
        def forward(self, x):
            return self[2](mixed(self[1](self[0](x))).flatten(1))

    model = as_trained(Mixes(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Linear(72, 5)))
    with pytest.raises(InputError, match="depends on the other images of the batch"):
        check_independence(trace(model, RGB8.shape), RGB8.shape)


def test_rounding_is_not_taken_for_other_images():
    """Sums of each number of images in another order, in a network that amplifies rounding."""

    class Rounds(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            rounding = torch.finfo(x.dtype).eps * len(x)
            return self[2](self[1](x * (1 + 1e4 * rounding)).flatten(1))

    model = as_trained(Rounds(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Linear(72, 5)))
    check_independence(model, RGB8.shape)


@pytest.mark.parametrize(
    "draw", [F.dropout, lambda x: x + torch.randn_like(x), lambda x: x * torch.rand(1)]
)
def test_a_random_classifier_is_named_as_that(draw):
    class Random(nn.Sequential):
        def forward(self, x):
            return self[1](draw(self[0](x)).flatten(1))

    model = as_trained(Random(nn.Conv2d(3, 2, 3), nn.Linear(72, 5)))
    with pytest.raises(
        InputError, match=r"answers differently each time .+training=self\.training"
    ):
        trace(model, RGB8.shape)


def test_other_shapes_are_told(truth):
    with pytest.raises(InputError, match=r"gives \[2, 4\] in place of \[2, 5\]"):
        require_same(truth, symbolic_graph(small_residual(num_classes=4)))


def itself(model):
    """The same model in float64: a change that changes nothing."""
    return model


def test_weights_rounded_to_float32_are_near_and_others_are_not(truth):
    rounded = copy.deepcopy(small_residual())
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.mul_(1 + 1e-7)
    require_near(truth, rounded, "rounding", itself)
    with torch.no_grad():
        rounded.project.weight.mul_(1.01)
    with pytest.raises(InputError, match=r"^classifier: rounding changes what it computes"):
        require_near(truth, rounded, "rounding", itself)


class Amplifier(nn.Module):
    """Doubles a difference between two images in each of its many steps, rounded each time."""

    def __init__(self, first=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(first))

    def forward(self, x):
        x = x.flatten(1)[:, :5].sigmoid()
        for _ in range(14):  # the logistic map, which is chaotic
            x = 3.99 * self.weight * x * (1 - x)
        return x


def test_a_network_that_amplifies_rounding_is_proven_in_float64():
    rounded = Amplifier(1 + 1e-7)
    truth = Truth(Amplifier(), RGB8.shape)
    assert (rounded(truth.images[0]) - truth.logits[0]).abs().max() > 1e-4
    require_near(truth, rounded, "rounding", itself)


@pytest.mark.parametrize(
    ("found", "remade"),
    [(1 + 1e-3, 1.0), (1 + 1e-7, 1 + 1e-7)],
    ids=["far in float32", "another function in float64"],
)
def test_amplified_rounding_excuses_no_other_function(found, remade):
    truth = Truth(Amplifier(), RGB8.shape)

    def remake(model):
        with torch.no_grad():
            model.weight.fill_(remade)
        return model

    with pytest.raises(InputError, match=r"^classifier: rounding changes what it computes"):
        require_near(truth, Amplifier(found), "rounding", remake)


def test_where_every_way_fails_each_says_why():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(192, 5)

        def forward(self, x):
            x = x.flatten(1)
            return self.fc(x if float(x.sum()) > 0 else -x)

    with pytest.raises(InputError) as error:
        trace(Chooses().eval(), RGB8.shape)
    message = str(error.value)
    assert "torch.fx cannot trace it" in message
    assert "torch.export cannot trace it" in message
    assert message.endswith("write its forward without branches on values")
    assert "\n" not in message
