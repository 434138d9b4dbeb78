"""Checkpoints as training scripts write them: weights beside objects of plain types, no code."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import RunsCode
from networks import small_gray
from safetensors.torch import save_file
from torch import nn

from zscgan_ext.classifiers.checkpoint_types import PlainObject
from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.classifiers.weights import load_weights, read_state_dict
from zscgan_ext.errors import InputError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder of its own, in which code that runs leaves something behind."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not [name for name in os.listdir() if name.startswith("code_ran")]


def read(content, **options):
    torch.save(content, "checkpoint.pth", **options)
    return read_state_dict(Path("checkpoint.pth"))


def training_state(model: nn.Module) -> dict[str, object]:
    """What torchvision's and timm's scripts write beside the weights, and what others add."""
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    arguments = argparse.Namespace(
        lr=0.1, model="resnet18", output=pathlib.Path("out"), betas=(0.9, 0.999), device="cuda"
    )
    return {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
        "epoch": 3,
        "args": arguments,
        "arch": "resnet18",
        "version": 2,
        "best_acc": np.float64(71.5),
        "metric": np.float32(0.5),
        "steps": np.int64(7),
        "is_best": np.bool_(True),
        "history": np.arange(5.0),
        "numpy_random": np.random.RandomState(0).get_state(),
        "torch_random": torch.get_rng_state(),
        "started": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        "took": datetime.timedelta(hours=3),
        "options": types.SimpleNamespace(a=1),
        "losses": collections.defaultdict(list, {"train": [1.0, 2.0]}),
        "last": collections.deque([1, 2], maxlen=5),
        "classes": {"cat", "dog"},
        "none": None,
    }


@pytest.mark.parametrize("nest", ["model", "state_dict", "model_ema", "net"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_weights_beside_the_state_of_training(nest, is_zip):
    model = small_gray()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    content = {nest: model.state_dict(), **training_state(small_gray())}
    found = read(content, _use_new_zipfile_serialization=is_zip)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("key", list(training_state(small_gray())))
def test_each_kind_by_itself(key):
    state = training_state(small_gray())
    assert list(read({key: state[key], "model": {"a": torch.ones(2)}})) == ["a"]


def test_a_classifier_is_filled_from_such_a_checkpoint():
    trained, fresh = small_gray(), small_gray()
    with torch.no_grad():
        trained[0].weight.normal_()
    torch.save({"model": trained.state_dict(), **training_state(small_gray())}, "checkpoint.pth")
    loaded = load_classifier(fresh, Path("checkpoint.pth"), image_size=28).model
    images = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(loaded(images), trained(images))


def test_the_list_of_torch_is_as_it_was():
    before = set(torch.serialization.get_safe_globals())
    read({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(a=1)})
    with pytest.raises(InputError):
        read({"model": {"a": torch.ones(2)}, "args": RunsCode()})
    assert set(torch.serialization.get_safe_globals()) == before


def pickled(name: str, content: bytes) -> bytes:
    """A pickle of `{"model": {}, "other": ...}`; the content uses the global of this name."""
    module, _, attribute = name.rpartition(".")
    start = b"\x80\x02}(X\x05\x00\x00\x00otherc" + f"{module}\n{attribute}\n".encode()
    return start + content + b"u."


def loaded_by_torch(content: bytes):
    """Read a pickle as the one inside an archive of `torch.save`."""
    with torch.serialization._open_zipfile_writer("checkpoint.pth") as archive:
        archive.write_record("data.pkl", content, len(content))
        archive.write_record("byteorder", b"little", 6)
    return read_state_dict(Path("checkpoint.pth"))


CALLED_WITH_NOTHING = b")R"
CREATED = b")\x81"


@pytest.mark.parametrize(
    "name",
    [
        *("omegaconf.dictconfig.DictConfig", "omegaconf.nodes.AnyNode", "typing.Any"),
        *("pytorch_lightning.utilities.parsing.AttributeDict", "yacs.config.CfgNode"),
        *("lightning.fabric.utilities.data.AttributeDict", "pathlib.WindowsPath"),
        *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    ],
)
@pytest.mark.parametrize("made", [CALLED_WITH_NOTHING, CREATED])
def test_types_of_libraries_that_are_not_installed(name, made):
    with pytest.raises(InputError, match=r"'other' is a (PlainObject|OrderedDict), not a tensor"):
        loaded_by_torch(pickled(name, made))


def test_a_state_can_change_nothing():
    # BUILD with ({}, {"__class__": X}) sets attributes of what stands there, slots included.
    state = b"}}X\x09\x00\x00\x00__class__ccollections\nOrderedDict\ns\x86b"
    with pytest.raises(InputError, match="'other' is a PlainObject, not a tensor"):
        loaded_by_torch(pickled("argparse.Namespace", CREATED + state))
    assert vars(PlainObject(1, a=2)) == {}


class SubclassOfNamespace(argparse.Namespace):
    """Runs code when its state is set."""

    def __setstate__(self, state):
        os.mkdir("code_ran")


class ReducesToCode(argparse.Namespace):
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("code_ran",)


class StateOfCode(argparse.Namespace):
    """A Namespace whose state is made by a call."""

    def __reduce__(self):
        return argparse.Namespace, (), {"a": RunsCode()}


class ArgumentsOfCode:
    """A scalar of numpy whose bytes are made by a call."""

    def __reduce__(self):
        return np.float64(1).__reduce__()[0], (np.dtype("O"), RunsCode())


class FactoryOfCode:
    """A defaultdict whose factory is a function that runs code."""

    def __reduce__(self):
        return collections.defaultdict, (os.mkdir,)


class Evaluated:
    """A call of a built-in function."""

    def __reduce__(self):
        return eval, ("__import__('os').mkdir('code_ran')",)


class ByAttribute:
    """A method looked up by its name."""

    def __reduce__(self):
        return getattr, (pathlib.Path("code_ran"), "mkdir")


class InAnArray:
    """An array of objects, the first of which runs code."""

    def __reduce__(self):
        return np.array([RunsCode(), None], dtype=object).__reduce__()


@pytest.mark.parametrize(
    "kind",
    [
        *(SubclassOfNamespace, ReducesToCode, StateOfCode, ArgumentsOfCode, FactoryOfCode),
        *(Evaluated, ByAttribute, InAnArray),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_is_refused_and_never_run(kind, is_zip):
    content = {"model": {"a": torch.ones(2)}, "args": kind()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="pickled code, which is never run") as error:
            read(content, _use_new_zipfile_serialization=is_zip)
    assert "\n" not in str(error.value)


def test_the_name_of_what_is_refused_is_told():
    with pytest.raises(InputError, match=r"never run \(test_checkpoint_types.SubclassOfNamespace"):
        read({"model": {"a": torch.ones(2)}, "args": SubclassOfNamespace()})


class HidesMethods:
    """An OrderedDict with attributes in the place of its methods."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        hidden = dict.fromkeys(("items", "get", "keys", "__len__", "__class__"), 3)
        return collections.OrderedDict, (), hidden, None, iter(self.content.items())


def test_attributes_that_hide_methods_are_no_matter():
    assert list(read(HidesMethods({"a": torch.ones(2)}))) == ["a"]
    assert list(read(HidesMethods({"model": HidesMethods({"a": torch.ones(2)})}))) == ["a"]


# ---- what a file is, whatever its name says ------------------------------------------------------


def test_safetensors_under_another_name():
    save_file({"a": torch.arange(3.0)}, "weights.pth")
    assert read_state_dict(Path("weights.pth"))["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_torch_file_under_the_name_of_safetensors(is_zip):
    file = Path("weights.safetensors")
    torch.save({"a": torch.arange(3.0)}, file, _use_new_zipfile_serialization=is_zip)
    assert read_state_dict(file)["a"].tolist() == [0, 1, 2]


def test_a_header_whose_length_looks_like_a_pickle():
    content = {f"tensor{i:02}": torch.zeros(1) for i in range(40)}
    for length in range(1, 400):
        save_file(content, "w.safetensors", {"padding": "x" * length})
        if Path("w.safetensors").read_bytes()[0] == 0x80:
            break
    assert Path("w.safetensors").read_bytes()[0] == 0x80
    assert len(read_state_dict(Path("w.safetensors"))) == 40


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_torchscript_is_named(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files remain
        torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), name)
    with pytest.raises(InputError, match="is a TorchScript archive") as error:
        load_weights(nn.Conv2d(1, 1, 1), Path(name))
    assert "model.state_dict()" in str(error.value)


def test_a_program_is_named():
    program = torch.export.export(nn.Conv2d(1, 1, 1), (torch.zeros(2, 1, 4, 4),))
    torch.export.save(program, "model.pt2")
    with pytest.raises(InputError, match=r"is a program of torch.export; give it as --classifier"):
        read_state_dict(Path("model.pt2"))


def test_a_whole_pickle_is_refused():
    Path("w.pt").write_bytes(pickle.dumps({"a": argparse.Namespace(b=RunsCode())}))
    with pytest.raises(InputError, match="pickled code"):
        read_state_dict(Path("w.pt"))
