"""Classifiers of torchvision and timm: what their metadata say, weights of files, no network."""

import sys
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from torch import nn

from zscgan_ext.classifiers.loading import find_source, load_classifier
from zscgan_ext.classifiers.sources.local import FunctionSource
from zscgan_ext.errors import InputError

TORCHVISION, TIMM = "mobilenet_v3_small", "test_resnet"


@pytest.fixture
def weights(tmp_path):
    """A function that saves a model's state dict, and returns the file."""

    def save(model: nn.Module):
        file = tmp_path / "weights.pth"
        torch.save(model.state_dict(), file)
        return file

    return save


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    state = second.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


def test_torchvision_with_a_file(weights):
    model = torchvision.models.get_model(TORCHVISION)
    classifier = load_classifier(f"torchvision:{TORCHVISION}", weights(model))
    assert_same_state(model, classifier.model)
    assert classifier.preprocessing.shape == (3, 224, 224)
    assert classifier.preprocessing.mean == (0.485, 0.456, 0.406)
    assert classifier.preprocessing.std == (0.229, 0.224, 0.225)
    assert (classifier.num_classes, classifier.class_names[:2]) == (1000, ("tench", "goldfish"))


def test_torchvision_with_other_classes_and_size(weights):
    model = torchvision.models.get_model(TORCHVISION, num_classes=7)
    classifier = load_classifier(f"torchvision:{TORCHVISION}", weights(model), 7, image_size=64)
    assert classifier.class_names == tuple("0123456")
    assert classifier.preprocessing.image_size == 64


def test_torchvision_size_is_the_architectures(weights):
    model = torchvision.models.get_model("efficientnet_b1", num_classes=1000)
    assert load_classifier("torchvision:efficientnet_b1", weights(model)).preprocessing.shape == (
        *(3, 240, 240),
    )


def test_torchvision_with_its_own_weights(monkeypatch):
    model = torchvision.models.get_model(TORCHVISION)
    asked = []

    def download(url, progress, check_hash, weights_only):
        asked.append((url, check_hash, weights_only))
        return model.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert_same_state(model, load_classifier(f"torchvision:{TORCHVISION}").model)
    best = torchvision.models.get_model_weights(TORCHVISION).DEFAULT
    assert asked == [(best.url, True, True)]


def test_torchvision_without_a_network(monkeypatch):
    def fail(url, progress, check_hash, weights_only):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(InputError, match=r"cannot be downloaded .*no network.*--weights FILE") as e:
        load_classifier(f"torchvision:{TORCHVISION}")
    assert "\n" not in str(e.value)


def test_inception_normalizes_anew_only_with_imagenet_classes():
    source = find_source("torchvision:googlenet")
    assert source.build(None, trained=False).transform_input
    assert not source.build(7, trained=False).transform_input


def test_timm_with_a_file(weights):
    torch.manual_seed(0)
    model = timm.create_model(TIMM)
    classifier = load_classifier(f"timm:{TIMM}", weights(model))
    assert_same_state(model, classifier.model)
    config = model.pretrained_cfg
    assert classifier.preprocessing.shape == tuple(config["input_size"])
    assert classifier.preprocessing.mean == tuple(config["mean"])
    assert classifier.preprocessing.std == tuple(config["std"])
    assert classifier.num_classes == 1000


def test_timm_with_other_classes(weights):
    file = weights(timm.create_model(TIMM, num_classes=5))
    assert load_classifier(f"timm:{TIMM}", file, num_classes=5).num_classes == 5


def test_timm_without_a_network(monkeypatch):
    def fail(name, pretrained):
        raise OSError(f"no network for {name}")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=r"own weights \(no network.*--weights FILE"):
        load_classifier(f"timm:{TIMM}")


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="package timm, which is not installed; pip install timm"):
        load_classifier(f"timm:{TIMM}")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("torchvision:mobilenetv2", "'mobilenetv2', did you mean mobilenet_v2"),
        ("torchvision:fasterrcnn_resnet50_fpn", "has no classification model"),
        ("torchvision:", "has no classification model ''"),
        ("timm:test_resnets", "'test_resnets', did you mean test_resnet"),
        ("timm:hf_hub:some/repository", "has no model 'hf_hub:some/repository'"),
        ("timm:local-dir:/tmp", "has no model 'local-dir:/tmp'"),
    ],
)
def test_unknown_models_give_one_line(name, part):
    with pytest.raises(InputError) as error:
        load_classifier(name)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_the_current_folder_is_searched_only_for_what_it_alone_has(tmp_path, monkeypatch):
    """Libraries that look for optional packages later must not find them there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    FunctionSource("torchvision.models:resnet18").build(10, trained=False)
    assert str(tmp_path) not in sys.path
    (tmp_path / "only_here.py").write_text("from torch import nn\nbuild = nn.Identity\n")
    assert isinstance(FunctionSource("only_here:build").build(None, trained=False), nn.Identity)
    assert str(tmp_path) in sys.path
