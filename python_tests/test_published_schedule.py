"""The benchmark of a published schedule: its arithmetic, its rows and its refusals."""

import json

import pytest
import torch
from benchmark_scripts import run_benchmark

IMAGES = 1_280_000


def test_a_trial_measures_both_stages(tmp_path):
    path = tmp_path / "schedule.json"
    done = run_benchmark(
        "baselines.bench_published_schedule", "--device", "cpu", "--quick", "--json", path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert [row["stage"] for row in result["rows"]] == ["generator", "fine-tuning"]
    assert result["schedule_images"] == IMAGES
    for row in result["rows"]:
        assert (row["classifier"], row["batch_size"], row["measured_steps"]) == ("resnet18", 2, 2)
        seconds_per_image = row["milliseconds_per_step"] / 1e3 / row["batch_size"]
        assert row["images_per_second"] == pytest.approx(1 / seconds_per_image)
        assert row["extrapolated_minutes"] == pytest.approx(IMAGES * seconds_per_image / 60)
        assert f"{row['extrapolated_minutes']:.1f}" in done.stdout
    assert "extrapolated" in done.stdout
    assert result["made_with"]["torch"] == torch.__version__


def test_only_steps_after_the_warm_up_count(monkeypatch):
    from benchmarks.baselines import bench_published_schedule

    times = iter([10.0, 11.0, 15.0])
    monkeypatch.setattr(bench_published_schedule.time, "perf_counter", lambda: next(times))
    stretch = bench_published_schedule.Stretch(torch.device("cpu"), warm_up=3)
    for step in (1, 2, 3, 5, 8):  # a trainer may report some steps only
        stretch.mark(step)
    assert stretch.milliseconds_per_step() == pytest.approx(1e3 * (15 - 10) / (8 - 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classifiers", "resnet1"], "error: classifier: torchvision.models has no function"),
        (["--steps", 0], "error: --steps, --warm-up and --batch-sizes: needed are numbers above 0"),
        (["--quick", "--classifiers", "mobilenet_v2", "--weights", "nowhere"], "nowhere"),
    ],
)
def test_refusals_are_clear(arguments, message):
    done = run_benchmark("baselines.bench_published_schedule", "--device", "cpu", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
