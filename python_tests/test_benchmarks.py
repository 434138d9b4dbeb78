"""The benchmarks of kernels and of training steps: rows, arithmetic, files and refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPT = BENCHMARKS / "bench_kernels.py"
KEYS = {
    "op",
    "direction",
    "layout",
    "dtype",
    "shape",
    "device",
    "implementation",
    "median_ms",
    "bytes",
    "gb_per_s",
    "versus_copy",
}
OPS = {
    "fake_quantize",
    "fake_quantize_learned",
    "fake_quantize_learned_relu",
    "fake_quantize_learned_bias_relu",
    "fake_quantize_learned_many",
    "observe",
    "batch_norm_statistics",
    "batch_norm_eval_matched",
    "batch_norm_loss",
    "batch_norm_distance",
}
DOCUMENT = "before\n<!-- measured:begin -->\nold\n<!-- measured:end -->\nafter\n"


def run(*arguments: object, script: Path = SCRIPT, **environment: str):
    """Run a benchmark in a process of its own: it sets the allocator and an environment."""
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)} | environment,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a run on very small tensors wrote and printed."""
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("benchmark") / "kernels.json"
    options = ("--elements", 256, "--samples", 1, "--json", path)
    completed = run(*options, ZSCGAN_EXT_IMPL="native")
    assert completed.returncode == 0, completed.stderr
    return path, completed.stdout


def rows_of(measured):
    return json.loads(measured[0].read_text())["rows"]


def test_every_op_and_implementation_has_rows(measured):
    rows = rows_of(measured)
    assert all(set(row) == KEYS for row in rows)
    assert {row["op"] for row in rows} == OPS
    assert {row["layout"] for row in rows} >= {"NCHW", "channels_last", "weights"}
    assert {row["direction"] for row in rows} == {"forward", "backward", "forward+backward"}
    present = {(row["op"], row["direction"], row["layout"], row["implementation"]) for row in rows}
    assert len(present) == len(rows)
    for op, direction, layout, _ in present:
        assert (op, direction, layout, "native") in present
        assert (op, direction, layout, "copy") in present


def test_rows_are_consistent(measured):
    for row in rows_of(measured):
        assert row["median_ms"] > 0
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_ms"] / 1e6, rel=1e-2)
        if row["implementation"] == "copy":
            assert row["versus_copy"] == pytest.approx(1)


def test_bytes_are_the_floors_of_the_design(measured):
    bytes_of = {
        (row["op"], row["direction"]): row["bytes"]
        for row in rows_of(measured)
        if row["implementation"] == "native" and row["layout"] == "NCHW"
    }
    numel = 4 * 8 * 8  # 256 elements, 4 bytes each
    assert bytes_of["fake_quantize", "forward"] == 8 * numel + numel / 8
    assert bytes_of["fake_quantize_learned", "forward"] == 8 * numel
    assert bytes_of["fake_quantize_learned", "backward"] == 12 * numel
    assert bytes_of["fake_quantize_learned_relu", "backward"] == 12 * numel
    assert bytes_of["fake_quantize_learned_bias_relu", "forward"] == 8 * numel
    assert bytes_of["observe", "forward"] == 4 * numel
    assert bytes_of["batch_norm_statistics", "backward"] == 8 * numel
    assert bytes_of["batch_norm_eval_matched", "forward"] == 8 * numel
    assert bytes_of["batch_norm_eval_matched", "backward"] == 12 * numel
    assert bytes_of["batch_norm_loss", "forward+backward"] == 12 * numel


def test_the_run_describes_itself(measured):
    made = json.loads(measured[0].read_text())["made_with"]
    assert made["versions"]["torch"] == torch.__version__
    assert {"commit", "cpu", "threads", "command", "date", "allocator"} <= set(made)
    assert "--elements 256" in made["command"]
    assert measured[0].with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "batch_norm_loss" in measured[1]


@pytest.fixture
def benchmark_modules(monkeypatch):
    """Make the modules beside the script importable."""
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.usefixtures("benchmark_modules")
def test_documents_get_the_table(measured, tmp_path):
    from kernel_report import update_documentation

    document = tmp_path / "kernels.md"
    document.write_text(DOCUMENT)
    update_documentation(document, measured[0])
    text = document.read_text()
    assert text.startswith("before\n<!-- measured:begin -->\n")
    assert text.endswith("|\n<!-- measured:end -->\nafter\n")
    assert "old" not in text
    natives = sum(row["implementation"] == "native" for row in rows_of(measured))
    assert text.count("\n| ") == natives + 1


@pytest.mark.usefixtures("benchmark_modules")
def test_a_document_without_markers_is_left_alone(measured, tmp_path):
    from kernel_report import update_documentation

    document = tmp_path / "kernels.md"
    document.write_text("no table here\n")
    with pytest.raises(SystemExit, match="measured:begin"):
        update_documentation(document, measured[0])
    assert document.read_text() == "no table here\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--quick"], {"ZSCGAN_EXT_IMPL": "reference"}, "accepted here is native"),
        (["--update-docs", "kernels.md"], {"ZSCGAN_EXT_IMPL": "native"}, "needs --json"),
    ],
)
def test_refusals_are_one_clear_line(arguments, environment, message):
    completed = run(*arguments, **environment)
    assert completed.returncode == 1
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.usefixtures("benchmark_modules")
def test_plain_torch_learns_the_same():
    import plain_torch

    from zscgan_ext.ops import fake_quantize_learned

    # Steps well inside, and well outside, of the range: eager rounding is inexact at its ends.
    steps = torch.tensor([-20.25, -2.25, 1.25, 3.4, 20.25]).expand(2, 3, 5)
    scale, zero_point = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 1.0, -2.0])
    x = (steps * scale.view(1, 3, 1)).requires_grad_()
    wanted = [x, scale.requires_grad_(), zero_point.requires_grad_()]
    results = [
        f(*wanted, -8, 7, 1, 0.5)
        for f in (plain_torch.fake_quantize_learned, fake_quantize_learned)
    ]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad((y * y).sum(), wanted) for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("benchmark_modules")
def test_plain_torch_matches_the_same():
    import plain_torch

    from zscgan_ext.ops import batch_norm_distance, batch_norm_statistics

    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    running_mean, running_var, eps = torch.zeros(3), torch.ones(3), 1e-5
    plain = plain_torch.batch_norm_loss(x, running_mean, running_var, eps)
    mean, variance = batch_norm_statistics(x, running_mean)
    distance = batch_norm_distance([mean], [variance], [running_mean], [running_var], [eps])
    torch.testing.assert_close(plain, distance)
    gradients = [torch.autograd.grad(y, x) for y in (plain, distance)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


# ---- bench_train_step ----------------------------------------------------------------------------

STEP_SCRIPT = BENCHMARKS / "bench_train_step.py"
STEP_KEYS = {
    *("classifier", "stage", "batch", "device", "implementation", "median_ms"),
    "peak_memory_bytes",
}


@pytest.fixture(scope="module")
def measured_steps(tmp_path_factory):
    """What a run on two images of resnet20 wrote and printed."""
    path = tmp_path_factory.mktemp("benchmark") / "train_step.json"
    options = ("--quick", "--stages", "teacher", "--batch", 2, "--samples", 1, "--json", path)
    completed = run(*options, script=STEP_SCRIPT, OMP_NUM_THREADS="1")
    assert completed.returncode == 0, completed.stderr
    return path, completed.stdout


def test_every_subject_has_a_row(measured_steps):
    rows = rows_of(measured_steps)
    assert all(set(row) == STEP_KEYS for row in rows)
    assert [(row["stage"], row["implementation"]) for row in rows] == [
        ("teacher", "eager"),
        ("teacher", "native"),
        ("teacher_matched", "native"),
    ]
    for row in rows:
        assert (row["classifier"], row["batch"], row["device"]) == ("resnet20", 2, "cpu")
        assert 0 < row["median_ms"] < 60_000
        assert 1e8 < row["peak_memory_bytes"] < 1e11
    assert measured_steps[0].with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("benchmark_modules")
def test_the_table_of_steps_has_the_ratios(measured_steps, tmp_path):
    from train_step_report import update_documentation

    path, printed = measured_steps
    eager, native, matched = rows_of(measured_steps)
    document = tmp_path / "performance.md"
    document.write_text(DOCUMENT)
    update_documentation(document, path)
    for text in (document.read_text(), printed):
        line = next(line for line in text.splitlines() if " teacher " in line)
        assert f" {eager['median_ms'] / native['median_ms']:.2f}x" in line
        assert f" {native['peak_memory_bytes'] / eager['peak_memory_bytes']:.2f}x" in line
        ratio = matched["median_ms"] / native["median_ms"]
        assert f"resnet20 2 cpu: teacher_matched / teacher {ratio:.2f}" in text
    assert "old" not in document.read_text()


@pytest.mark.usefixtures("benchmark_modules")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_plan_has_every_classifier_stage_and_implementation(device):
    from bench_train_step import groups, parse

    planned = [s for group in groups(parse(["--device", device])) for s in group]
    assert len(set(planned)) == len(planned)
    for classifier in ("resnet20", "resnet18", "resnet50", "mobilenet_v2"):
        own = [s for s in planned if s.classifier == classifier]
        expected = {16} if device == "cpu" else {16, 128}
        for stage in ("generator_step", "fine_tuning_step", "teacher", "teacher_matched"):
            if classifier == "resnet20":  # the trainer's own sizes
                expected = {32} if stage == "fine_tuning_step" else {128}
            assert {s.batch for s in own if s.stage == stage} == expected
        pairs = {(s.stage, s.implementation) for s in own}
        for stage in ("generator_step", "fine_tuning_step", "teacher"):
            assert {(stage, "eager"), (stage, "native")} <= pairs
        assert ("teacher_matched", "native") in pairs
        compiled = device == "cuda" or classifier == "resnet20"
        assert (("generator_step", "compiled") in pairs) == compiled
        assert (("generator_step", "reference") in pairs) == (device == "cuda")
    assert {s.classifier for g in groups(parse(["--quick"])) for s in g} == {"resnet20"}


@pytest.mark.usefixtures("benchmark_modules")
@pytest.mark.parametrize("stage", ["generator_step", "fine_tuning_step"])
def test_eager_steps_are_plain_and_native_ones_are_the_trainers(stage):
    from training_subjects import Subject, new_step

    def formats(implementation):
        training = new_step(Subject("resnet20", stage, implementation, 2, "cpu")).__self__
        assert torch.isfinite(training.advance()).all()
        return training.execution.facts()

    eager, native = formats("eager"), formats("native")
    assert eager["memory_format"] == "contiguous"
    assert not eager["keep_freed_memory"]
    assert native["memory_format"] == "channels_last"
    assert native["keep_freed_memory"]


@pytest.mark.usefixtures("benchmark_modules")
def test_torchvision_classifiers_get_statistics_of_their_activations():
    from training_subjects import build_classifier

    torch.manual_seed(0)
    model, preprocessing = build_classifier("resnet18")
    assert not model.training
    images = torch.randn(4, *preprocessing.shape)
    inputs = []
    layer = model.layer4[1].bn2
    layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        logits = model(images)
    assert logits.abs().max() < 100
    variance = inputs[0].var((0, 2, 3))
    assert 0.5 < (variance / layer.running_var).median() < 2


@pytest.mark.usefixtures("benchmark_modules")
def test_a_worker_that_fails_ends_the_benchmark():
    from bench_train_step import measure
    from training_subjects import Subject

    with pytest.raises(SystemExit, match=r"resnet20.*exit code 1"):
        list(measure([Subject("resnet20", "no_such_stage", "native", 2, "cpu")], 1))


def test_coverage_checks_a_classifier(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from bench_coverage import CHECKS, check, passes

    result = check("timm:test_efficientnet")
    assert {title: result[title]["passed"] for title in CHECKS} == dict.fromkeys(CHECKS, True)
    assert passes(result)


def test_committed_coverage_reaches_the_bar(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from bench_coverage import passes
    from coverage_models import LARGE, all_names

    results = json.loads((BENCHMARKS / "results" / "coverage.json").read_text())["results"]
    assert set(all_names()) - set(LARGE) <= set(results)
    failing = [name for name, result in results.items() if not passes(result)]
    assert not [name for name in failing if name.startswith("torchvision:")]
    timm = [name for name in results if name.startswith("timm:")]
    assert len(timm) >= 60
    assert len(failing) <= 0.05 * len(timm)
