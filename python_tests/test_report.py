"""The page about a run: what it measures, and how a browser shows it."""

import base64
import io
import json
import math
import os
import re
import subprocess
import sys

import matplotlib
import pytest
import torch
from browser import show
from exported import calibrated, noise, small_classifier
from matplotlib.figure import Figure
from networks import small_residual
from PIL import Image
from runs import PYTHONPATH, SHORT, write_fashion_mnist
from safetensors.torch import load_file

from zscgan_ext.measures import agreement
from zscgan_ext.report.__main__ import main as report
from zscgan_ext.report.charts import (
    confusion_matrix,
    loss_curves,
    set_scale_of_losses,
    stage_times,
)
from zscgan_ext.report.measurements import (
    Change,
    activation_errors,
    clipped_percent,
    confusion,
    layer_statistics,
    most_frequent_changes,
    signal_to_noise,
    weight_errors,
    worst,
)
from zscgan_ext.report.page import collect
from zscgan_ext.report.pictures import data_address
from zscgan_ext.train import main as train

SECTIONS = ["summary", "learning", "images", "diversity", "batch-norm", "layers"]
SECTIONS += ["confusion", "time", "settings"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run with a report and a log for TensorBoard."""
    images = write_fashion_mnist(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--evaluation-data", str(images), "--output", str(folder), "--tensorboard"]
    assert train([*SHORT, *arguments, "--report"]) == 0
    return folder


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """The folder of a short run of a classifier of one's own, without any real image."""
    folder = tmp_path_factory.mktemp("run") / "out"
    own = ["--classifier=networks:small_residual", "--image-size=8", "--scheme=paper"]
    assert train([*SHORT, *own, "--export=none", "--output", str(folder), "--report"]) == 0
    return folder


def page_of(folder) -> str:
    return (folder / "report.html").read_text("utf-8")


def without_charts(page: str) -> str:
    """Leave out the curves, whose points may move by a rounding error."""
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


# ---- what is measured ---------------------------------------------------------------------------


def test_signal_to_noise_of_worked_examples():
    x = torch.tensor([3.0, 4.0])
    assert signal_to_noise(x, torch.tensor([3.0, 3.0])) == pytest.approx(10 * math.log10(25))
    assert signal_to_noise(x, x) == math.inf
    assert signal_to_noise(torch.zeros(2), x) == -math.inf


def test_rounding_noise_of_uniform_values_is_a_twelfth_of_a_squared_step():
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1 / 255
    expected = 10 * math.log10((1 / 3) / (step**2 / 12))
    assert signal_to_noise(x, torch.round(x / step) * step) == pytest.approx(expected, abs=0.05)


def test_clipping_is_told_from_rounding():
    x = torch.tensor([[0.0, 0.4, 0.6, 5.0], [0.0, 1.0, 4.0, 9.0]])
    quantized = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 2.0, 4.0, 4.0]])
    assert clipped_percent(x, quantized, torch.tensor([1.0, 2.0])) == 25


@pytest.mark.parametrize("scheme", ["deploy", "paper"])
def test_errors_are_those_of_torchs_own_quantizers(scheme):
    classifier = small_classifier()
    student = calibrated(classifier, scheme, 4, 4)
    (images,) = noise(classifier, batches=1)
    logits = student(images)
    weights, activations = weight_errors(student), activation_errors(student, images)
    assert torch.equal(student(images), logits)
    assert len(weights) == len(student.layers)
    assert len(activations) == len(student.activation_quantizers)
    for error, layer in zip(weights, student.layers, strict=True):
        low, high = layer.quant_range.quant_min, layer.quant_range.quant_max
        scale = layer.qparams().scale.detach()
        quantized = torch.fake_quantize_per_channel_affine(
            layer.layer.weight, scale, layer.zero_point.int(), 0, low, high
        )
        assert error.sqnr == pytest.approx(signal_to_noise(layer.layer.weight, quantized), abs=0.01)
        assert error.maximum == float(layer.layer.weight.max())
        assert error.bits == layer.quant_range.bits
    first = student.activation_quantizers[0]
    if scheme == "deploy":  # the first quantizer takes the images themselves
        quantized = torch.fake_quantize_per_tensor_affine(
            images, first.log_scale.exp().detach(), first.zero_point.int(), 0, 255
        )
        assert activations[0].sqnr == pytest.approx(signal_to_noise(images, quantized), abs=0.01)
        assert activations[0].minimum == float(images.min())
    lowest = min(error.sqnr for error in weights + activations)
    assert worst(weights + activations, 2)[0].sqnr == lowest


def test_statistics_are_those_of_what_a_batch_norm_reads():
    model = small_residual()
    images = torch.randn(4, 3, 8, 8)
    layers = layer_statistics(model, images)
    assert [layer.layer for layer in layers] == ["stem_bn", "depthwise_bn", "project_bn"]
    x = model.stem(images)
    torch.testing.assert_close(layers[0].mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(layers[0].variance, x.var((0, 2, 3), unbiased=False))
    mse = (layers[0].mean - model.stem_bn.running_mean).square()
    mse = mse + (layers[0].variance - model.stem_bn.running_var).square()
    assert layers[0].distance("mse") == pytest.approx(float(mse.mean()), rel=1e-5)


def test_confusion_counts_pairs():
    before, after = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 0, 2])
    counts = confusion(before, after, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert most_frequent_changes(before, after, 5) == [Change(2, 0, 2), Change(0, 1, 1)]


@pytest.mark.parametrize(("size", "kind"), [(28, "png"), (224, "jpeg")])
def test_pictures_are_inlined(size, kind):
    address = data_address(torch.rand(3, size, size))
    assert address.startswith(f"data:image/{kind};base64,")
    assert len(address) < 40_000


# ---- what the page says -------------------------------------------------------------------------


def test_the_page_needs_no_network(run):
    page = page_of(run)
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert re.findall(r"url\((?!#)[^)]*\)|@import", page) == []


def test_the_page_says_what_the_run_measured(run):
    page, metrics = page_of(run), json.loads((run / "metrics.json").read_text())
    for row in ("float", "noise_calibrated", "generated_calibrated", "fine_tuned"):
        assert f"{metrics['top1'][row]:.2f}" in page
        assert f"{metrics['agreement'][row]:.2f}" in page
    assert f"{metrics['diversity']['generated']['mean_entropy']:.3f}" in page
    ranges = metrics["initial_ranges"]["fine_tuned"]
    assert f"Initial ranges of fine-tuning: {ranges['chosen']} (divergence" in page
    assert all(f"{name} {value:.3g}" in page for name, value in ranges["divergence"].items())
    assert set(re.findall(r'<section id="([\w-]+)"', page)) == set(SECTIONS)
    assert all(name in page for name in ("Ankle boot", "T-shirt/top", "synthesis_steps"))
    assert len(set(re.findall(r'\sid="([^"]+)"', page))) == len(re.findall(r'\sid="', page))


def test_what_changed_is_one_minus_the_agreement(run):
    content = collect(run)
    metrics = json.loads((run / "metrics.json").read_text())
    chosen = metrics["choice"]["chosen"]
    assert content.changed_percent == pytest.approx(100 - metrics["agreement"][chosen])
    classes = load_file(run / "predictions.safetensors")
    logits = {row: torch.nn.functional.one_hot(classes[row].long(), 10) for row in classes}
    for row, found in metrics["agreement"].items():
        if found is not None:
            assert agreement(logits[row], logits["float"]) == found
    assert content.settings["device"] == "cpu"
    assert content.compared_on == "the 60 evaluation images"


def test_the_program_writes_the_same_page(run, capsys):
    page = without_charts(page_of(run))
    assert report([str(run)]) == 0
    assert without_charts(page_of(run)) == page
    assert capsys.readouterr().out == f"report in {run / 'report.html'}\n"


@pytest.mark.parametrize(
    ("losses", "scale", "bottom"),
    [
        ([8.0, 6.0, 5.0], "linear", 0),
        ([8.0, 0.5, 0.01], "log", None),
        ([8.0, 0.5, -0.01], "symlog", None),
        ([-1.0, -2.0], "linear", None),
    ],
)
def test_losses_that_span_much_get_a_logarithmic_axis(losses, scale, bottom):
    axes = Figure().subplots()
    axes.plot(losses)
    set_scale_of_losses(axes)
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= min(losses)
    assert high >= max(losses)
    assert bottom in (None, low)


@pytest.mark.parametrize("lowest", [0.01, -0.01], ids=["log", "symlog"])
def test_ticks_of_logarithmic_axes_are_numbers(lowest):
    entries = [{"step": step, "loss": loss} for step, loss in enumerate((80.0, 0.5, lowest), 1)]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", loss_curves("losses", {"all": entries}))
    assert {"1", "10"} <= set(texts)
    assert [text for text in texts if "$" in text] == []


def test_charts_are_the_same_every_time(run):
    assert collect(run).charts["distances"] == collect(run).charts["distances"]


def test_a_report_without_real_images(own_run):
    content = collect(own_run, "networks:small_residual")
    assert content.compared_on == "1,024 generated images"
    assert content.notes == ["No real images were given: nothing here is compared with them."]
    assert content.summary == []
    assert "top-1, float" not in page_of(own_run)


@pytest.mark.parametrize("name", ["metrics.json", "metrics.jsonl", "quantized.safetensors"])
def test_a_missing_file_is_one_line(own_run, name, capsys):
    (own_run / name).rename(own_run / "hidden")
    try:
        assert report([str(own_run), "--classifier", "networks:small_residual"]) == 2
    finally:
        (own_run / "hidden").rename(own_run / name)
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


# ---- how it looks -------------------------------------------------------------------------------


def test_charts_take_nothing_from_the_settings_of_matplotlib():
    """They may be those of a file in the current folder, and have TeX run there."""
    times = {"synthesis": 1.0}
    plain = stage_times(times)
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "font.size": 40}):
        assert stage_times(times) == plain


@pytest.mark.parametrize("arguments", [["report", "gone"], ["train", "--weights=gone"]])
def test_a_matplotlib_that_refuses_the_environment_is_told_at_once(tmp_path, arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"zscgan_ext.{arguments[0]}", *arguments[1:]],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "MPLBACKEND": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: report: matplotlib cannot be imported (Key backend: 'nonsense'")


def test_charts_have_no_background_and_the_pages_text_colour():
    """So they stand on light pages and on dark ones."""
    counts = torch.tensor([[9, 1, 0], [0, 10, 0], [5, 0, 5]])
    svg = confusion_matrix(counts, ["cat", "dog", "owl"])
    texts = re.findall(r'<text style="([^"]*)"', svg)
    assert len(texts) >= 9
    assert all("fill: currentColor" in style for style in texts)
    assert "#ffffff" not in svg
    encoded = re.search(r"data:image/png;base64,([^\"]+)", svg)[1]
    alpha = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA").getchannel("A")
    low, high = alpha.getextrema()
    assert low == 0  # no image, no colour
    assert 190 < high < 210  # the text on it stays legible


@pytest.mark.parametrize(
    ("which", "width", "is_dark"),
    [("run", 1280, False), ("run", 400, True), ("own_run", 1280, True), ("own_run", 400, False)],
)
def test_a_browser_shows_it_all(browser, request, tmp_path, which, width, is_dark):
    folder = request.getfixturevalue(which)
    shown = show(browser, folder / "report.html", width, tmp_path, is_dark)
    assert (sum(shown.picture.getpixel((1, 1))) < 150) == is_dark
    assert shown.width == width
    assert shown.scroll_width == width
    assert shown.wide == []
    assert shown.empty == []
    assert shown.counts["section"] == len(SECTIONS)
    assert shown.counts["svg"] >= 9
    assert shown.counts["img"] == 8 * (10 if which == "run" else 5)
    assert shown.picture.size == (width, shown.height)
    assert_nothing_is_blank(shown.picture)


def assert_nothing_is_blank(picture):
    """No screenful of the page is of one colour, and none but the last half empty."""
    step = 600
    for top in range(0, picture.height - step, step):
        part = picture.crop((0, top, picture.width, top + step)).convert("L")
        assert len(part.getcolors()) > 30, top
        rows = [part.crop((0, y, part.width, y + 10)).getextrema() for y in range(0, step, 10)]
        assert sum(low != high for low, high in rows) > len(rows) / 2, top


# ---- TensorBoard --------------------------------------------------------------------------------


def test_tensorboard_has_the_same_losses_and_images(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for stage in ("synthesis", "fine_tuned"):
        expected = [(e["step"], e["loss"]) for e in log if e["stage"] == stage]
        found = [(scalar.step, scalar.value) for scalar in events.Scalars(f"{stage}/loss")]
        assert found == [(step, pytest.approx(loss)) for step, loss in expected]
    assert [image.step for image in events.Images("samples")] == [1, 3, 10]
    assert events.Images("samples")[0].width == 10 * 28


def test_without_tensorboard_the_way_to_install_it_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train([*SHORT, "--tensorboard", "--output", str(tmp_path / "out")]) == 2
    message = "error: tensorboard: needs the package tensorboard, which is not installed"
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out").exists()
