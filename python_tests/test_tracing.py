"""The normal form of graphs, `torch.export` where `torch.fx` cannot trace, and `.pt2` files."""

import pytest
import torch
import torch.nn.functional as F
from networks import RGB8, as_trained, small_residual
from torch import nn
from torch.fx.proxy import TraceError

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.classifiers.symbolic_tracing import symbolic_graph
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.errors import InputError
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme

IMAGES = torch.randn(3, *RGB8.shape, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """Layers called as functions, with a weight that is computed from a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        torch._assert(x.shape[1] == 3, "three channels")
        standardized = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        x = F.conv2d(x, standardized, None, 1, 1)
        norm = self.norm
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        x = F.dropout(x, 0.5, self.training)
        return F.linear(x.mean((2, 3)), self.fc)


class ReusesOverwritten(nn.Module):
    """Uses a tensor after an activation overwrote it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.norm(self.conv(x))
        y = self.relu(x)
        return (x - 2 * y).mean((2, 3))


class Branches(nn.Module):
    """Asks for the size of its input, as padding to the size of the output does."""

    def __init__(self):
        super().__init__()
        self.model = small_residual()

    def forward(self, x):
        if x.shape[-1] % 2 == 0:
            x = F.pad(x, (0, 1, 0, 1))
        return self.model(x)


def kinds(graph):
    return {type(m) for m in graph.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def test_functions_become_layers():
    model = as_trained(Functional())
    graph = trace(model, RGB8.shape)
    assert not {node.target for node in graph.graph.nodes} & {F.conv2d, F.batch_norm, F.dropout}
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called == [torch.mean]
    assert torch.equal(graph(IMAGES), model(IMAGES))
    assert len(kinds(graph)) == 1


class NamesInputs(nn.Module):
    """A network that calls its layers with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 5)

    def forward(self, x):
        return self.last(input=self.norm(input=self.conv(input=x)).relu().flatten(1))


def test_layers_take_their_input_by_position():
    model = as_trained(NamesInputs())
    graph = trace(model, RGB8.shape)
    called = [node for node in graph.graph.nodes if node.op == "call_module"]
    assert [(len(node.args), node.kwargs) for node in called] == [(1, {})] * 3
    assert torch.equal(graph(IMAGES), model(IMAGES))
    assert convert(model, Scheme("deploy", 8, 8), RGB8.shape)(IMAGES).shape == (len(IMAGES), 5)


def test_an_overwritten_tensor_is_not_seen():
    model = as_trained(ReusesOverwritten())
    graph = trace(model, RGB8.shape)
    (norm,) = (node for node in graph.graph.nodes if node.target == "norm")
    assert [user.target for user in norm.users] == [F.relu]
    assert torch.equal(graph(IMAGES), model(IMAGES))


def test_tracing_a_normal_form_changes_nothing():
    graph = trace(as_trained(Functional()), RGB8.shape)
    again = trace(graph, RGB8.shape)
    assert [str(n) for n in again.graph.nodes] == [str(n) for n in graph.graph.nodes]
    assert torch.equal(again(IMAGES), graph(IMAGES))


def test_export_where_fx_cannot():
    model = Branches().eval()
    with pytest.raises(TraceError):
        symbolic_graph(model)
    graph = trace(model, RGB8.shape)
    assert torch.equal(graph(IMAGES), model(IMAGES))
    again = trace(graph, RGB8.shape)
    assert [str(n) for n in again.graph.nodes] == [str(n) for n in graph.graph.nodes]


def test_weights_from_images_are_named():
    class Dynamic(nn.Module):
        def forward(self, x):
            return F.conv2d(x, x.mean(0, keepdim=True)).flatten(1)

    with pytest.raises(InputError, match=r"conv2d \(conv2d\) takes a weight that depends on the"):
        trace(Dynamic().eval(), RGB8.shape)


def export(model, dynamic=True):
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, "model.pt2")


def test_a_program_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small_residual()
    export(model)
    classifier = load_classifier("model.pt2")
    assert torch.equal(classifier.model(IMAGES), model(IMAGES))
    assert classifier.preprocessing.shape == RGB8.shape
    assert classifier.num_classes == 5


def test_wrong_program_files_give_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"missing\.pt2 cannot be read \(No such file"):
        load_classifier("missing.pt2")
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(InputError, match=r"text\.pt2 cannot be read as a torch\.export program"):
        load_classifier("text.pt2")
    export(small_residual(), dynamic=False)
    with pytest.raises(
        InputError, match="expected batches of any size, got 3 only; export it with dynamic_shapes"
    ):
        load_classifier("model.pt2")
