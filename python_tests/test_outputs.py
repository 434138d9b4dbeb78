"""Classifiers with several outputs, and with one logit: what is taken, and what comes out."""

import numpy as np
import onnxruntime
import pytest
import torch
from networks import one_logit_gray, several_outputs, small_gray
from runs import TINY
from torch import nn

import zscgan_ext
from zscgan_ext.errors import InputError
from zscgan_ext.generate.__main__ import main as generate
from zscgan_ext.train import main as train

GRAY = {"image_size": 28, "mean": [0.5], "std": [0.25]}
IMAGES = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("index", "key", "classes"), [(None, "auxiliary", 3), (1, "auxiliary", 3), (2, "logits", 10)]
)
def test_the_first_output_that_fits_is_taken_or_the_one_that_is_named(index, key, classes):
    classifier = zscgan_ext.load_classifier(several_outputs(), output_index=index, **GRAY)
    assert classifier.num_classes == classes
    assert torch.equal(classifier.model(IMAGES), several_outputs()(IMAGES)[1][key])
    # The head that nobody takes is gone, with its batch norm.
    norms = [m for m in classifier.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Files of `torch.export` programs of models with several outputs and with one logit."""
    folder = tmp_path_factory.mktemp("programs")
    models = {"several": several_outputs(), "[N]": one_logit_gray(), "[N, 1]": small_gray(1)}
    for name, model in models.items():
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(model.eval(), (IMAGES,), dynamic_shapes=shapes, strict=False)
        torch.export.save(program, folder / f"{name}.pt2")
    return folder


@pytest.mark.parametrize(
    ("index", "key", "classes"), [(None, "auxiliary", 3), (1, "auxiliary", 3), (2, "logits", 10)]
)
def test_of_a_program_an_output_is_taken_too(programs, index, key, classes):
    options = {"mean": [0.5], "std": [0.25], "output_index": index}
    classifier = zscgan_ext.load_classifier(str(programs / "several.pt2"), **options)
    assert classifier.num_classes == classes
    expected = several_outputs()(IMAGES)[1][key]
    torch.testing.assert_close(classifier.model(IMAGES), expected)
    # The head that nobody takes is gone, with its weights.
    head = ("auxiliary", "auxiliary_head") if key == "auxiliary" else ("last", "head")
    parts = [several_outputs().get_submodule(name) for name in ("body", *head)]
    count = sum(each.numel() for part in parts for each in part.parameters())
    assert sum(each.numel() for each in classifier.model.parameters()) == count


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (0, r"expected logits \[2, num_classes\] of 2 images"),
        (3, r"output_index: expected 0 to 2, as .* gives 3 output\(s\), got 3"),
    ],
)
def test_outputs_of_a_program_that_are_no_logits_are_refused(programs, index, message):
    with pytest.raises(InputError, match=message):
        zscgan_ext.load_classifier(str(programs / "several.pt2"), output_index=index)


@pytest.mark.parametrize("name", ["[N]", "[N, 1]"])
def test_one_logit_of_a_program_is_two_classes(programs, name):
    classifier = zscgan_ext.load_classifier(str(programs / f"{name}.pt2"), mean=[0.5], std=[0.25])
    model = {"[N]": one_logit_gray(), "[N, 1]": small_gray(1)}[name]
    assert classifier.num_classes == 2
    logits = torch.stack([torch.zeros(5), model(IMAGES).reshape(-1)], 1)
    torch.testing.assert_close(classifier.model(IMAGES), logits)


@pytest.mark.parametrize("model", [one_logit_gray(), small_gray(1)], ids=["[N]", "[N, 1]"])
def test_one_logit_is_two_classes_whose_softmax_is_its_sigmoid(model):
    classifier = zscgan_ext.load_classifier(model, **GRAY)
    assert classifier.num_classes == 2
    probability = classifier.model(IMAGES).softmax(1)[:, 1]
    assert torch.allclose(probability, model(IMAGES).reshape(-1).sigmoid(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "classes"),
    [("several_outputs", ["--output-index=2"], 10), ("one_logit_gray", [], 2)],
)
def test_a_run_and_its_files(tmp_path, name, options, classes):
    own, folder = f"--classifier=networks:{name}", tmp_path / "out"
    tiny = [*(word for word in TINY[1:] if "num-classes" not in word), own, *options]
    assert train([*tiny, "--export=onnx,safetensors", "--bits=w8a8", f"--output={folder}"]) == 0
    loaded = zscgan_ext.load_quantized(folder / "model.safetensors", f"networks:{name}")
    logits = loaded(IMAGES)
    assert logits.shape == (5, classes)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (exported,) = session.run(None, {"images": IMAGES.numpy()})
    assert np.abs(exported - logits.numpy()).max() < 0.1 * logits.abs().max()
    if name == "several_outputs":
        truth = several_outputs()(IMAGES)[1]["logits"]
    else:
        truth = torch.stack([torch.zeros(5), one_logit_gray()(IMAGES)], 1)
        assert not logits[:, 0].any()
    assert (logits - truth).abs().max() < 0.2 * truth.abs().max()
    out = str(tmp_path / "images")
    assert generate([str(folder), f"--count={2 * classes}", f"--out={out}"]) == 0
    counts = np.bincount(np.load(tmp_path / "images" / "labels.npy"))
    assert counts.tolist() == [2] * classes


class Gives(nn.Module):
    """Gives what a function makes of logits."""

    def __init__(self, function):
        super().__init__()
        self.body = small_gray()
        self.function = function

    def forward(self, images):
        return self.function(self.body(images))


@pytest.mark.parametrize(
    ("function", "index", "message"),
    [
        (lambda x: (x, x), 2, "output_index: expected 0 to 1, as Gives gives 2 output"),
        (lambda x: x, 1, "output_index: expected 0 to 0, as Gives gives 1 output"),
        (lambda x: (x[:, :, None], "text"), None, "gives 2 outputs, none of which is logits"),
        (lambda x: (x, "text"), 1, "expected logits .* got str"),
        (lambda x: None, None, "expected logits .* got NoneType"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(function, index, message):
    with pytest.raises(InputError, match=message):
        zscgan_ext.load_classifier(Gives(function), output_index=index, **GRAY)
