"""Loading classifiers: bundled ones, functions, weights files and what can be wrong with them."""

import os
import pickle
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from networks import small_residual
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from zscgan_ext.classifiers.loading import Classifier, load_classifier
from zscgan_ext.errors import InputError
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.quantization.squant import round_weights
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

MODELS = """
    import torch
    from torch import nn

    def small(num_classes=7):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, num_classes))

    def fixed_size():
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
                             nn.Linear(4 * 6 * 6, 5))

    def half():
        return small().half()

    def without_batch_norm():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def without_running_statistics():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def partly_without_running_statistics():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False),
                             nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def one_logit():
        return small(1)

    def without_convolution():
        return nn.BatchNorm1d(3)

    def feature_maps():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def infinite():
        model = small()
        model[1].running_var[2] = float("inf")
        return model

    def not_a_model():
        return 3

    def raises():
        raise RuntimeError("first line\\nsecond line")

    number = 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Make `models.py` importable from the current folder alone, under a name of this test's."""
    name = f"models_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODELS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return name


def small_state(models: str) -> dict[str, torch.Tensor]:
    model = load_classifier(f"{models}:small", image_size=8).model
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", [n for n, bundled in BUNDLED_CLASSIFIERS.items() if bundled.weights.exists()]
)
def test_bundled_classifier_is_frozen_and_knows_its_input(name):
    classifier = load_classifier(name)
    assert classifier.num_classes == 10
    assert classifier.class_names[9] == "Ankle boot"
    assert classifier.preprocessing.image_size == 28
    assert not any(module.training for module in classifier.model.modules())
    assert not any(parameter.requires_grad for parameter in classifier.model.parameters())


def test_function_from_the_current_folder(models):
    classifier = load_classifier(f"{models}:small")
    assert (classifier.num_classes, len(classifier.class_names)) == (7, 7)
    assert classifier.preprocessing.channels == 3
    assert classifier.preprocessing.image_size == 224
    assert classifier.preprocessing.mean == (0.485, 0.456, 0.406)
    assert classifier.preprocessing.is_assumed
    assert load_classifier(f"{models}:small", num_classes=4).num_classes == 4


def test_given_input_wins_over_the_defaults(models):
    classifier = load_classifier(f"{models}:fixed_size", image_size=8, mean=(0.1, 0.2))
    assert classifier.preprocessing.image_size == 8
    assert classifier.preprocessing.mean == (0.1, 0.2)
    assert classifier.preprocessing.std == (0.5, 0.5)
    assert not classifier.preprocessing.is_assumed


def test_weights_that_parametrizations_compute_become_plain():
    model = small_residual()
    weight_norm(model.stem)
    spectral_norm(model.fc)
    given = list(model.state_dict())
    classifier = load_classifier(model, image_size=8)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(classifier.model(images), model(images))
    assert not any("parametrizations" in name for name in classifier.model.state_dict())
    assert list(model.state_dict()) == given  # the model itself was copied
    student = convert(classifier.model, Scheme("deploy", 8, 8), (3, 8, 8))
    round_weights(student)
    assert student(images).isfinite().all()


def test_half_models_become_float32(models):
    state = load_classifier(f"{models}:half").model.state_dict()
    assert state["0.weight"].dtype == torch.float32


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".legacy.pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_file_fills_the_model(models, suffix, dtype):
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in small_state(models).items()
    }
    file = Path(f"weights{suffix}")
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=suffix == ".pt")
    loaded = load_classifier(f"{models}:small", weights=file).model.state_dict()
    for name, value in state.items():
        assert torch.equal(loaded[name], value.to(loaded[name].dtype))
        assert loaded[name].dtype != torch.float16


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.", "net."])
@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state_dict", "ema"])
def test_nested_and_wrapped_state_dicts(models, nest, wrapper):
    state = small_state(models)
    wrapped = {f"{wrapper}{name}": value for name, value in state.items()}
    torch.save({nest: wrapped, "epoch": 3}, "checkpoint.pth")
    loaded = load_classifier(f"{models}:small", weights=Path("checkpoint.pth")).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_averaged_weights_are_preferred(models, key):
    state = small_state(models)
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"state_dict": zeros, "model": zeros, key: state}, "checkpoint.pth")
    loaded = load_classifier(f"{models}:small", weights=Path("checkpoint.pth")).model.state_dict()
    assert torch.equal(loaded["0.weight"], state["0.weight"])


def test_weights_of_an_averaged_model(models):
    model = load_classifier(f"{models}:small", image_size=8).model
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), "averaged.pth")
    loaded = load_classifier(f"{models}:small", weights=Path("averaged.pth")).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_old_checkpoints_lack_num_batches_tracked(models):
    state = small_state(models)
    del state["1.num_batches_tracked"]
    torch.save(state, "old.pth")
    loaded = load_classifier(f"{models}:small", weights=Path("old.pth"))
    assert torch.equal(loaded.model.state_dict()["4.bias"], state["4.bias"])


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("resnet2", {}, ["unknown 'resnet2', did you mean resnet20?", "module:function"]),
        ("zzz", {}, ["unknown 'zzz', accepted are resnet20", "torchvision:NAME, timm:NAME"]),
        ("resnet20", {"num_classes": 7}, ["num_classes: 7, but resnet20 gives 10 logits"]),
        ("resnet20", {"mean": (0.5, 0.5)}, ["mean: 2 value(s)", "1 input channel"]),
        ("no_such_module:f", {}, ["importing 'no_such_module'", "ModuleNotFoundError"]),
        ("models:smal", {}, ["has no function 'smal', did you mean small"]),
        ("models:number", {}, ["has no function 'number'"]),
        ("models:raises", {}, ["raised RuntimeError: first line"]),
        ("models:not_a_model", {}, ["expected a torch.nn.Module, got a int"]),
        (
            "models:without_convolution",
            {},
            ["cannot take 224x224 images with 3 channel(s)"],
        ),
        ("models:without_batch_norm", {}, ["needs at least one BatchNorm layer"]),
        ("models:without_running_statistics", {}, ["needs at least one BatchNorm layer"]),
        ("models:partly_without_running_statistics", {}, ["1 is a BatchNorm layer without"]),
        ("models:one_logit", {"num_classes": 1}, ["num_classes: 1, but", "gives 2 logits"]),
        (
            "models:feature_maps",
            {"image_size": 8},
            ["expected logits [2, num_classes]", "got (2, 4, 6, 6)"],
        ),
        ("models:fixed_size", {"image_size": 9}, ["image_size:", "9x9 images", "cannot be multi"]),
        ("models:infinite", {}, ["NaN or infinite values in 1.running_var"]),
        ("models:fixed_size", {"image_size": 8, "num_classes": 9}, ["gives 5 logits"]),
    ],
)
def test_bad_classifiers_give_one_line(models, name, arguments, parts):
    with pytest.raises(InputError) as error:
        load_classifier(name.replace("models:", f"{models}:"), **arguments)
    assert_one_line(error, *parts)


class Touch:
    """Pickles into a call that would leave a file behind."""

    def __reduce__(self):
        return os.mkdir, ("code_ran",)


def write_bad_weights(kind: str, state: dict[str, torch.Tensor], file: Path) -> None:
    if kind == "folder":
        file.mkdir()
    elif kind == "empty":
        file.touch()
    elif kind == "text":
        file.write_text("these are not weights")
    elif kind == "pickle":
        file.write_bytes(pickle.dumps({"0.weight": Touch()}))
    elif kind == "code in a state dict":
        torch.save(state | {"0.weight": Touch()}, file)
    elif kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, its files remain
            torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), file)
    elif kind == "module":
        torch.save(nn.Conv2d(1, 1, 1), file)
    elif kind == "truncated":
        torch.save(state, file)
        file.write_bytes(file.read_bytes()[:-300])
    elif kind == "truncated safetensors":
        save_file(state, file)
        file.write_bytes(file.read_bytes()[:-8])
    elif kind == "header of a bomb":
        file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    elif kind == "tensor":
        torch.save(torch.zeros(3), file)
    elif kind == "numbers":
        torch.save({"epoch": 3}, file)


@pytest.mark.parametrize(
    ("kind", "suffix", "part"),
    [
        ("missing", ".pt", "cannot be read (No such file or directory)"),
        ("folder", ".pt", "cannot be read (Is a directory)"),
        ("empty", ".pt", "is empty"),
        ("empty", ".safetensors", "is empty"),
        ("text", ".pt", "not a torch file"),
        ("text", ".safetensors", "not a safetensors file"),
        ("pickle", ".pt", "pickled code, which is never run"),
        ("code in a state dict", ".pt", "pickled code, which is never run"),
        ("torchscript", ".pt", "is a TorchScript archive, which is a program"),
        ("module", ".pt", "pickled code, which is never run"),
        ("truncated", ".pt", "truncated or not a torch file"),
        ("truncated safetensors", ".safetensors", "truncated or not a safetensors file"),
        ("header of a bomb", ".safetensors", "truncated or not a safetensors file"),
        ("tensor", ".pt", "holds a Tensor, not a state dict"),
        ("numbers", ".pt", "is not a state dict, 'epoch' is a int"),
    ],
)
def test_bad_weights_files_give_one_line(models, kind, suffix, part):
    file = Path(f"weights{suffix}")
    write_bad_weights(kind, small_state(models), file)
    with pytest.raises(InputError) as error:
        load_classifier(f"{models}:small", weights=file)
    assert_one_line(error, f"weights: {file}", part)
    assert not Path("code_ran").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"4.weight": None}, ["lacks 4.weight"]),
        ({"4.weight": None, "4.bias": None}, ["lacks 4.weight, 2 missing in all"]),
        ({"fc.bias": torch.zeros(1)}, ["has fc.bias, which the model lacks"]),
        ({"4.bias": None, "fc.bias": torch.zeros(7)}, ["lacks 4.bias (it has fc.bias instead)"]),
        ({"4.bias": torch.zeros(9)}, ["expected 4.bias of shape (7,), got (9,)"]),
        (
            {"4.bias": torch.zeros(9), "4.weight": torch.zeros(9, 4)},
            ["expected 4.weight of shape (7, 4), got (9, 4), 2 wrong shapes in all"],
        ),
        ({"4.bias": torch.full((7,), float("nan"))}, ["NaN or infinite values in 4.bias"]),
    ],
)
def test_weights_that_do_not_fit_give_one_line(models, change, parts):
    state = small_state(models) | change
    torch.save({name: value for name, value in state.items() if value is not None}, "w.pt")
    with pytest.raises(InputError) as error:
        load_classifier(f"{models}:small", weights=Path("w.pt"))
    assert_one_line(error, "weights: w.pt", *parts)


def test_classifier_cannot_be_changed(models):
    classifier = load_classifier(f"{models}:small", image_size=8)
    assert isinstance(classifier, Classifier)
    with pytest.raises(AttributeError):
        classifier.num_classes = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("stem", "images", "read"),
    [
        (nn.PixelUnshuffle(2), 3, 12),
        (nn.PixelUnshuffle(2), 1, 4),
        (nn.Upsample(scale_factor=2), 5, 5),
    ],
)
def test_images_have_the_channels_that_the_model_takes(stem, images, read):
    body = (nn.Conv2d(read, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = load_classifier(nn.Sequential(stem, *body), image_size=8)
    assert classifier.preprocessing.channels == images
    assert len(classifier.preprocessing.mean) == images


def test_channels_that_do_not_fit_are_told_as_those_of_the_first_convolution():
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(7, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(InputError, match=r"cannot take 8x8 images with 7 channel\(s\)"):
        load_classifier(model, image_size=8)
