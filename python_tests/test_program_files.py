"""`.pt2` files: what hostile ones would run is refused before torch reads them."""

import json
import os
import pickle
import resource
from pathlib import Path

import hostile_programs as programs
import pytest
import torch
from hostile_files import MARKER, RunsCode
from networks import small_residual

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.classifiers.pt2.symbolic_size import symbolic_size
from zscgan_ext.errors import InputError
from zscgan_ext.json_values import MismatchError

MOST_MEMORY = 500 << 20  # bytes that a file may add to the peak
IMAGES = torch.linspace(-2, 2, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("make", programs.GOOD.values(), ids=programs.GOOD)
def test_good_files_compute_what_was_exported(place, make):
    """What the cases below spoil is good: otherwise they would prove nothing."""
    Path("model.pt2").write_bytes(make())
    classifier = load_classifier("model.pt2")
    assert torch.equal(classifier.model(IMAGES), small_residual()(IMAGES))


def test_decomposed_batch_norm_computes_the_same(place):
    """Its operator reads beyond weights that are too small; the one that checks takes its place."""
    program = programs.program().run_decompositions()
    called = {str(node.target) for node in program.graph.nodes}
    assert "aten._native_batch_norm_legit_no_training.default" in called
    torch.export.save(program, "model.pt2")
    classifier = load_classifier("model.pt2")
    assert torch.equal(classifier.model(IMAGES), small_residual()(IMAGES))


def test_weights_of_batch_norm_that_are_too_small_are_refused(place):
    program = programs.program().run_decompositions()
    name = next(name for name in program.state_dict if name.endswith("running_mean"))
    program.state_dict[name] = torch.zeros(1)
    torch.export.save(program, "model.pt2")
    with pytest.raises(InputError, match=r"running_mean should contain \d+ elements not 1"):
        load_classifier("model.pt2")


@pytest.mark.parametrize(("make", "message"), programs.USABLE.values(), ids=programs.USABLE)
def test_hostile_files_are_refused_and_run_nothing(place, make, message):
    Path("model.pt2").write_bytes(make())
    memory = peak_memory()
    with pytest.raises(InputError, match=message) as refused:
        load_classifier("model.pt2")
    assert str(refused.value).startswith("classifier: model.pt2 cannot be read as a torch.export")
    assert len(str(refused.value)) < 1000
    assert os.listdir() == ["model.pt2"]
    assert peak_memory() - memory < MOST_MEMORY


@pytest.mark.parametrize("kind", programs.GOOD)
def test_what_is_not_needed_is_not_read(place, kind):
    """Example inputs are pickled, guards are Python, a stack names types: nothing needs them."""
    is_flat = kind == "flat"
    base = programs.flat_members if is_flat else programs.folder_members
    name = "serialized_example_inputs.pt" if is_flat else programs.EXAMPLES
    model = programs.FLAT if is_flat else programs.MODEL
    value = json.loads(base()[model])
    value["guards_code"] = [programs.RUN]
    value["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = programs.RUN
    value["graph_module"]["graph"]["nodes"][0]["metadata"] = {
        "source_fn_stack": f"x,torch.os.mkdir('{MARKER}')",
        "custom": "[" * 10**5,
    }
    members = {**base(), name: pickle.dumps(RunsCode()), model: json.dumps(value).encode()}
    folder = "" if is_flat else "m/"
    Path("model.pt2").write_bytes(programs.archive(members, folder=folder))
    classifier = load_classifier("model.pt2")
    assert torch.equal(classifier.model(IMAGES), small_residual()(IMAGES))
    assert not os.path.exists(MARKER)


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s0', positive=True, integer=True))",
        "Add(Mul(Integer(-1), Symbol('u12', integer=True)), Integer(5))",
        "Max(Integer(0), FloorDiv(Symbol('s0'), Integer(2)))",
        "Pow(Symbol('s0', integer=True), Integer(2))",
        "Mul(Rational(1, 2), Symbol('s0'))",
        "LessThan(Symbol('s0'), Integer(3))",
        "true",
    ],
)
def test_expressions_that_torch_writes_stay(text):
    assert symbolic_size(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s0",
        "",
        "1",
        "'s0'",
        "Symbol",
        "Symbol()",
        "Symbol('s0', 's1')",
        "Symbol('S')",
        "Symbol('s0', **{})",
        "Symbol(*['s0'])",
        "Integer(2.0)",
        "Integer(True)",
        "Integer('2')",
        "Integer(9223372036854775808)",
        "Rational(1, 0)",
        "Rational(1)",
        "Pow(Integer(9), Integer(9))",
        "Pow(Symbol('s0'), Integer(9))",
        "Pow(Pow(Symbol('s0'), Integer(8)), Integer(8))",
        "Add()",
        "Add(a=1)",
        "Add(Integer(1), key=2)",
        "Lambda(Symbol('s0'), Symbol('s0'))",
        "factorial(Integer(9))",
        "Symbol('s0').free_symbols",
        "Symbol('s0')[0]",
        "Symbol('s0')\nSymbol('s0')",
        "eval('1')",
        "__import__('os')",
        "Symbol('s0', integer=1)",
        "Symbol('s0', commutative=True)",
        "None",
        "\0",
        "f'{1}'",
        "[Integer(1)]",
        "Integer(1) if true else Integer(2)",
        "Integer(1)!",
        "\u0130nteger(1)",
    ],
)
def test_other_expressions_are_refused(text):
    with pytest.raises(MismatchError):
        symbolic_size(text)


def test_a_program_file_has_to_be_a_regular_one(place):
    os.mkfifo("pipe.pt2")
    with pytest.raises(InputError, match=r"pipe\.pt2 cannot be read \(Not a regular file\)"):
        load_classifier("pipe.pt2")
    Path("folder.pt2").mkdir()
    with pytest.raises(InputError, match=r"folder\.pt2 cannot be read \(Is a directory\)"):
        load_classifier("folder.pt2")
