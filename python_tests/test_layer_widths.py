"""Widths of single layers: patterns, layers in floats, and a budget that decides."""

import itertools
import json
import os
import shutil
import signal

import pytest
import torch
import written_models
from networks import RGB8, small_gray, small_residual
from runs import OWN
from torch import nn

import zscgan_ext
from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.config.command_line import parse_config
from zscgan_ext.config.configs import QuantizationConfig, RunConfig
from zscgan_ext.config.values import LayerBits
from zscgan_ext.errors import InputError
from zscgan_ext.quantization import layer_sensitivity
from zscgan_ext.quantization.bit_budget import choose_widths
from zscgan_ext.quantization.conversion import convert, student_of
from zscgan_ext.quantization.layer_widths import layer_names
from zscgan_ext.quantization.quantizers import QuantizedLayer
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.run_folder.finished_run import open_run
from zscgan_ext.stages import layer_bits_stage, student_stages
from zscgan_ext.train import main

RUN = [
    *(OWN, "--num-classes=10", "--image-size=28", "--mean=0.5", "--std=0.25"),
    *("--preset=instant", "--device=cpu"),
]


@pytest.fixture
def residual():
    return load_classifier(small_residual(), image_size=8, mean=RGB8.mean, std=RGB8.std)


def widths(student) -> dict[str, int]:
    return {name: layer.quant_range.bits for name, layer in student.named_layers().items()}


# ---- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_no_other_widths_within_the_budget_lose_less(seed):
    random = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 60, (4,), generator=random).tolist()
    drawn = torch.rand(4, 4, generator=random).sort(1, descending=True).values
    losses = [dict(zip((2, 3, 5, 8), row, strict=True)) for row in drawn.tolist()]
    budget = int(3.7 * sum(counts))
    chosen = choose_widths(counts, losses, budget)

    def bits_and_loss(candidate):
        bits = sum(n * width for n, width in zip(counts, candidate, strict=True))
        return bits, sum(loss[width] for loss, width in zip(losses, candidate, strict=True))

    found = map(bits_and_loss, itertools.product((2, 3, 5, 8), repeat=4))
    least = min(loss for bits, loss in found if bits <= budget)
    bits, loss = bits_and_loss(chosen)
    assert bits <= budget
    assert loss == pytest.approx(least)


def test_a_budget_of_millions_of_bits_is_kept_and_used():
    counts = [1_280_000, 864, 7, 409_600, 153_600]
    losses = [{bits: weight * 4.0**-bits for bits in range(2, 9)} for weight in (1, 5, 5, 3, 2)]
    budget = int(4.5 * sum(counts))
    chosen = choose_widths(counts, losses, budget)
    bits = sum(n * width for n, width in zip(counts, chosen, strict=True))
    assert budget - 153_600 < bits <= budget
    assert chosen[1] == chosen[2] == 8


def test_noise_of_what_was_measured_does_not_take_bits_away():
    assert choose_widths([10], [{2: 1.0, 3: 0.1, 4: 0.2}], 30) == [3]
    assert choose_widths([10], [{2: 1.0, 3: 1.5, 4: 0.2}], 30) == [2]


def test_narrowest_widths_fit_even_where_rounding_to_units_takes_more():
    counts = [1] * 300_000
    assert choose_widths(counts[:2000], [{2: 1.0, 3: 0.0}] * 2000, 4000) == [2] * 2000


# ---- patterns ------------------------------------------------------------------------------------


def test_the_last_pattern_that_matches_counts_and_floats_win(residual):
    config = QuantizationConfig(
        bits="w4a4",
        layer_bits=("*=w3", "dep*=w5a7", "stem=w6", "stem=w2a8"),
        keep_float=("proj?ct",),
    )
    student = student_of(config, residual)
    assert widths(student) == {"stem": 2, "depthwise": 5, "fc": 3}
    assert isinstance(student.graph.project, nn.Conv2d)


def test_a_pattern_that_names_a_module_takes_the_layers_in_it():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)),
        nn.Flatten(),
        nn.Sequential(nn.Dropout(), nn.Linear(144, 5)),
    ).eval()
    classifier = load_classifier(model, image_size=8)
    config = QuantizationConfig(bits="w4a4", layer_bits=("0=w5", "2=w6"))
    assert widths(student_of(config, classifier)) == {"0.0": 5, "0.2": 5, "2.1": 6}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer_bits": ("depthwize=w4",)}, "'depthwize' matches no layer, did you mean depthwise"),
        ({"keep_float": ("nothing*",)}, "'nothing[*]' matches no layer; there are stem, depthw"),
        ({"keep_float": ("*",)}, "matches all layers"),
    ],
)
def test_a_pattern_without_a_layer_is_an_error(residual, given, message):
    with pytest.raises(InputError, match=message):
        student_of(QuantizationConfig(**given), residual)


def test_layers_have_the_names_of_the_model_where_only_torch_export_traces_it():
    model = written_models.SliceOverwritten()
    own = {
        name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    classifier = load_classifier(model.eval(), image_size=written_models.SHAPE[1])
    names = layer_names(classifier.model)
    assert any(target.startswith("functional_layers.") for target in names)
    assert set(names.values()) == own
    pattern = sorted(own)[0]
    student = student_of(QuantizationConfig(layer_bits=(f"{pattern}=w2",)), classifier)
    (target,) = (target for target, name in names.items() if name == pattern)
    assert widths(student)[target] == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": "auto", "average_weight_bits": 9.0}, "expected 8 or below, got 9"),
        ({"bits": "waut4"}, "got 'waut4'; with auto or wautoa4 a budget decides"),
        ({"layer_bits": ("stem",)}, "expected PATTERN=BITS"),
        ({"layer_bits": ("stem=w9",)}, "expected w2 to w8, w2a2 to w8a8, or float, got 'w9'"),
        ({"layer_bits": "stem=w8"}, "expected a list of texts or None, got 'stem=w8'"),
        ({"keep_float": (3,)}, "expected a list of texts"),
    ],
)
def test_wrong_settings_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        QuantizationConfig(**given)


def test_given_widths_that_leave_too_little_are_refused_before_anything_is_written(tmp_path):
    command = [*RUN, "--bits=auto", "--average-weight-bits=2.5", "--layer-bits", "3=w4"]
    assert main([*command, f"--output={tmp_path / 'run'}"]) == 2
    assert not (tmp_path / "run").exists()


def test_lists_are_read_from_the_command_line_and_from_files(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("quantization:\n  layer_bits: ['a=w8', 'b=float']\n  keep_float: c\n")
    config = parse_config([f"--config={file}"]).quantization
    assert config.layer_bits == ("a=w8", "b=float")
    assert config.keep_float == ("c",)
    config = parse_config(
        [f"--config={file}", "--layer-bits", "d=w3", "e=w4a4", "--layer-bits", "f=w5"]
    ).quantization
    assert config.layer_bits == ("d=w3", "e=w4a4", "f=w5")
    assert config.keep_float == ("c",)


# ---- conversion ----------------------------------------------------------------------------------


def test_what_a_layer_reads_has_the_width_it_asks_for(residual):
    layers = {"depthwise": LayerBits(3, 6), "project": LayerBits(7)}
    student = convert(residual.model, Scheme("deploy", 4, 5, layers), RGB8.shape)
    bits = {n: q.quant_range.bits for n, q in student.named_activation_quantizers().items()}
    assert bits["relu"] == 6  # also an operand of the sum
    assert bits["relu6"] == 5
    assert widths(student) == {"stem": 8, "depthwise": 3, "project": 7, "fc": 8}


@pytest.mark.parametrize(
    ("build", "bits", "scheme", "warns"),
    [
        (small_residual, "w2a8", "deploy", True),
        (small_residual, "w3a8", "deploy", False),
        (small_residual, "w2a8", "paper", False),
        (small_gray, "w2a8", "deploy", False),  # has no depthwise convolution
    ],
)
def test_two_bits_of_depthwise_networks_are_warned_of(build, bits, scheme, warns, capsys):
    model = build()
    size, form = (28, (0.5,)) if build is small_gray else (8, RGB8.mean)
    classifier = load_classifier(model, image_size=size, mean=form, std=[0.25] * len(form))
    zscgan_ext.quantize(classifier, bits=bits, scheme=scheme)
    expected = "warning: bits: weights of 2 bits cost a network with depthwise convolutions several"
    assert (expected in capsys.readouterr().out) == warns


def test_a_float_layer_computes_in_floats(residual):
    images = torch.randn(4, *RGB8.shape)
    layers = {"stem": LayerBits(None), "depthwise": LayerBits(None)}
    student = convert(residual.model, Scheme("deploy", 2, 2, layers), RGB8.shape)
    read: dict[str, torch.Tensor] = {}
    for name in layers:
        layer = student.graph.get_submodule(name)
        assert not isinstance(layer, QuantizedLayer)
        layer.register_forward_pre_hook(lambda _, x, name=name: read.update({name: x[0]}))
    student.quantize_activations()
    student(images)
    assert "x" not in student.named_activation_quantizers()
    model = small_residual()
    torch.testing.assert_close(read["stem"], images)
    expected = torch.relu(model.stem_bn(model.stem(images)))  # which the sum reads quantized
    torch.testing.assert_close(read["depthwise"], expected)
    assert "relu" in student.named_activation_quantizers()


@pytest.mark.parametrize("scheme", ["deploy", "paper"])
def test_files_hold_mixed_widths(tmp_path, residual, scheme):
    student = zscgan_ext.quantize(
        residual,
        scheme=scheme,
        bits="w4a8",
        layer_bits=["stem=w7a6", "depthwise=w3"],
        keep_float=["fc"],
    )
    zscgan_ext.export(residual, student, None, tmp_path, ["onnx", "safetensors"])
    loaded = zscgan_ext.load_quantized(tmp_path / "model.safetensors", small_residual())
    images = torch.randn(6, *RGB8.shape)
    assert torch.equal(loaded(images), student(images))
    assert widths(loaded) == widths(student) == {"stem": 7, "depthwise": 3, "project": 4}


def test_a_file_with_widths_of_a_layer_that_is_missing_is_refused(residual):
    scheme = Scheme("deploy", 4, 4, {"missing": LayerBits(4)})
    with pytest.raises(InputError, match="no layer 'missing'"):
        convert(residual.model, scheme, RGB8.shape)


# ---- sensitivity, and runs -----------------------------------------------------------------------


class Unread(nn.Module):
    """A layer whose result is multiplied by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.unread, self.read = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, images):
        x = torch.relu(self.norm(self.first(images)))
        x = self.read(x) + 0.0 * self.unread(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("scheme", ["deploy", "paper"])
def test_a_layer_loses_what_its_rounded_weights_change(scheme):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = load_classifier(Unread().eval(), image_size=8, mean=RGB8.mean, std=RGB8.std)
    student = convert(classifier.model, Scheme(scheme, 4, 4), RGB8.shape)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    losses = layer_sensitivity.layer_sensitivity(student, classifier, rng)
    assert set(losses) == {"first", "unread", "read", "fc"}
    assert all(loss == 0 for loss in losses["unread"].values())
    for name in ("first", "read", "fc"):
        assert losses[name][2] > 20 * losses[name][5] > 0
        assert losses[name][5] > 20 * losses[name][8] >= 0
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.fixture(scope="module")
def auto_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto") / "run"
    command = ["--bits=auto", "--average-weight-bits=4.3", "--layer-bits", "8=w3"]
    assert main([*RUN, *command, f"--output={folder}"]) == 0
    return folder


def test_a_run_keeps_the_average_and_says_which_widths_it_chose(auto_run):
    layers = json.loads((auto_run / "layer_bits.json").read_text())["layers"]
    counts = {"0": 36, "3": 288, "8": 80}
    assert {name: each["weights"] for name, each in layers.items()} == counts
    assert layers["8"]["bits"] == "w3"
    bits = sum(counts[name] * int(each["bits"][1]) for name, each in layers.items())
    assert 4 * 404 < bits <= 4.3 * 404
    metrics = json.loads((auto_run / "metrics.json").read_text())
    assert metrics["layer_bits"] == layers
    assert metrics["average_weight_bits"] == pytest.approx(bits / 404)
    page = (auto_run / "report.html").read_text()
    assert 'id="chart-widths"' in page
    loaded = zscgan_ext.load_quantized(auto_run / "model.safetensors", small_gray())
    assert {name: f"w{width}" for name, width in widths(loaded).items()} == {
        name: each["bits"] for name, each in layers.items()
    }


def test_a_record_that_lacks_a_layer_is_refused(auto_run, tmp_path):
    folder = shutil.copytree(auto_run, tmp_path / "run")
    record = json.loads((folder / "layer_bits.json").read_text())
    del record["layers"]["3"]
    (folder / "layer_bits.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"layer_bits.json: expected the width of each layer"):
        open_run(folder, OWN.partition("=")[2])


def test_a_record_with_another_width_is_refused(auto_run, tmp_path):
    """The student's weights are floats, and would be rounded to any width."""
    folder = shutil.copytree(auto_run, tmp_path / "run")
    record = json.loads((folder / "layer_bits.json").read_text())
    record["layers"]["3"]["bits"] = "w7"
    (folder / "layer_bits.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"layer_bits.json: holds other widths than the run has"):
        open_run(folder, OWN.partition("=")[2])


def stop_in_the_next_stage(monkeypatch) -> None:
    """Send a signal when the student is about to be quantized, as one that stops a run."""

    def stop(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(student_stages, "quantize_from_batch_norm", stop)


def test_a_resumed_run_measures_nothing_again(monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    folder = tmp_path / "run"
    stop_in_the_next_stage(monkeypatch)
    assert main([*RUN, "--bits=auto", f"--output={folder}"]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert not (folder / "quantized.safetensors").exists()
    chosen = (folder / "layer_bits.json").read_text()
    monkeypatch.setattr(layer_bits_stage, "layer_sensitivity", refuse)
    assert main([OWN, f"--resume={folder}"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["layer_bits"] == json.loads(chosen)["layers"]


def test_the_same_seed_chooses_the_same_widths_through_the_api():
    classifier = load_classifier(small_gray(), image_size=28, mean=[0.5], std=[0.25])
    students = [
        zscgan_ext.quantize(classifier, bits="wautoa4", average_weight_bits=3) for _ in range(2)
    ]
    assert widths(students[0]) == widths(students[1])
    counts = {
        name: layer.layer.weight.numel() for name, layer in students[0].named_layers().items()
    }
    bits = sum(counts[name] * width for name, width in widths(students[0]).items())
    assert bits <= 3 * sum(counts.values())
    assert {q.quant_range.bits for q in students[0].activation_quantizers} >= {4}


def test_the_default_average_is_four():
    assert RunConfig.of_options({"bits": "auto"}).quantization.average_weight_bits == 4
