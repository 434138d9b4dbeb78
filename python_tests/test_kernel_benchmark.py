"""The benchmark of kernels: rows, arithmetic, files and refusals."""

import json

import pytest
import torch
from benchmark_scripts import DOCUMENT, rows_of, run_benchmark

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
    "lsq_fake_quantize",
    "lsq_fake_quantize_relu",
    "lsq_fake_quantize_bias_relu",
    "lsq_fake_quantize_foreach",
    "update_min_max",
    "batch_norm_statistics",
    "frozen_batch_norm_with_stats",
    "noisy_batch_norm",
    "batch_norm_loss",
    "batch_norm_distance",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a run on very small tensors wrote and printed."""
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("benchmark") / "kernels.json"
    options = ("--elements", 256, "--samples", 1, "--json", path)
    completed = run_benchmark("kernels.bench_kernels", *options, ZSCGAN_EXT_IMPL="native")
    assert completed.returncode == 0, completed.stderr
    return path, completed.stdout


def test_every_op_and_implementation_has_rows(measured):
    rows = rows_of(measured[0])
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
    for row in rows_of(measured[0]):
        assert row["median_ms"] > 0
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_ms"] / 1e6, rel=1e-2)
        if row["implementation"] == "copy":
            assert row["versus_copy"] == pytest.approx(1)


def test_bytes_are_the_floors_of_the_design(measured):
    bytes_of = {
        (row["op"], row["direction"]): row["bytes"]
        for row in rows_of(measured[0])
        if row["implementation"] == "native" and row["layout"] == "NCHW"
    }
    numel = 4 * 8 * 8  # 256 elements, 4 bytes each
    assert bytes_of["fake_quantize", "forward"] == 8 * numel + numel / 8
    assert bytes_of["lsq_fake_quantize", "forward"] == 8 * numel
    assert bytes_of["lsq_fake_quantize", "backward"] == 12 * numel
    assert bytes_of["lsq_fake_quantize_relu", "backward"] == 12 * numel
    assert bytes_of["lsq_fake_quantize_bias_relu", "forward"] == 8 * numel
    assert bytes_of["update_min_max", "forward"] == 4 * numel
    assert bytes_of["batch_norm_statistics", "backward"] == 8 * numel
    assert bytes_of["frozen_batch_norm_with_stats", "forward"] == 8 * numel
    assert bytes_of["frozen_batch_norm_with_stats", "backward"] == 12 * numel
    assert bytes_of["batch_norm_loss", "forward+backward"] == 12 * numel


def test_the_run_describes_itself(measured):
    made = json.loads(measured[0].read_text())["made_with"]
    assert made["versions"]["torch"] == torch.__version__
    assert {"commit", "cpu", "threads", "command", "date", "allocator"} <= set(made)
    assert "--elements 256" in made["command"]
    assert measured[0].with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "batch_norm_loss" in measured[1]


def test_documents_get_the_table(measured, tmp_path):
    from benchmarks.kernels.kernel_report import update_documentation

    document = tmp_path / "kernels.md"
    document.write_text(DOCUMENT)
    update_documentation(document, measured[0])
    text = document.read_text()
    assert text.startswith("before\n<!-- measured:begin -->\n")
    assert text.endswith("|\n<!-- measured:end -->\nafter\n")
    assert "old" not in text
    natives = sum(row["implementation"] == "native" for row in rows_of(measured[0]))
    assert text.count("\n| ") == natives + 1


def test_a_document_without_markers_is_left_alone(measured, tmp_path):
    from benchmarks.kernels.kernel_report import update_documentation

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
    completed = run_benchmark("kernels.bench_kernels", *arguments, **environment)
    assert completed.returncode == 1
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr


def test_plain_torch_learns_the_same():
    from benchmarks.baselines import plain_torch
    from zscgan_ext.ops import lsq_fake_quantize

    # Steps well inside, and well outside, of the range: eager rounding is inexact at its ends.
    steps = torch.tensor([-20.25, -2.25, 1.25, 3.4, 20.25]).expand(2, 3, 5)
    scale, zero_point = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 1.0, -2.0])
    x = (steps * scale.view(1, 3, 1)).requires_grad_()
    wanted = [x, scale.requires_grad_(), zero_point.requires_grad_()]
    results = [
        f(*wanted, -8, 7, 1, 0.5) for f in (plain_torch.lsq_fake_quantize, lsq_fake_quantize)
    ]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad((y * y).sum(), wanted) for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_plain_torch_matches_the_same():
    from benchmarks.baselines import plain_torch
    from zscgan_ext.ops import batch_norm_distance, batch_norm_statistics

    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    running_mean, running_var, eps = torch.zeros(3), torch.ones(3), 1e-5
    plain = plain_torch.batch_norm_loss(x, running_mean, running_var, eps)
    mean, variance = batch_norm_statistics(x, running_mean)
    distance = batch_norm_distance([mean], [variance], [running_mean], [running_var], [eps])
    torch.testing.assert_close(plain, distance)
    gradients = [torch.autograd.grad(y, x) for y in (plain, distance)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
