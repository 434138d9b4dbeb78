"""The benchmark of what each part of the recipe is worth."""

import json
from types import SimpleNamespace

import pytest
from benchmark_scripts import run_benchmark
from runs import write_fashion_mnist

from zscgan_ext.config.configs import RunConfig

LARGER, FEWER = "batches of 128, with as many images", "a third of the generator's steps"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The options of a short benchmark, what it printed, and its JSON file."""
    folder = write_fashion_mnist(tmp_path_factory.mktemp("images"), count=20)
    file = tmp_path_factory.mktemp("benchmark") / "ablation.json"
    options = [
        *("--synthesis-steps=3", "--fine-tuning-steps=4", "--threads=1", "--seeds=1"),
        *("--data", write_fashion_mnist(folder, "train", count=120), "--json", file),
        *("--bits", "w8a8", "--variations", "the recipe", LARGER, FEWER),
    ]
    done = run_benchmark("accuracy.bench_ablation", *options)
    assert done.returncode == 0, done.stderr
    return options, done.stdout, file


def test_each_variation_is_measured_on_held_out_images(measured):
    _, printed, file = measured
    content = json.loads(file.read_text())
    assert [row["variation"] for row in content["rows"]] == ["the recipe", LARGER, FEWER]
    for row in content["rows"]:
        assert (row["bits"], row["seed"]) == ("w8a8", 1)
        assert (row["fine_tuned"] / 10) == pytest.approx(round(row["fine_tuned"] / 10))  # of 10
        assert row["fine_tuned"] >= 80  # eight bits lose next to nothing
        assert f"| {row['variation']} | {row['fine_tuned']:.1f} |" in printed


def test_the_benchmark_goes_on_where_it_ended(measured):
    options, _, file = measured
    content = json.loads(file.read_text())
    kept = content["rows"][:-1]
    file.write_text(json.dumps({**content, "rows": kept}))
    done = run_benchmark("accuracy.bench_ablation", *options)
    assert done.returncode == 0, done.stderr
    again = json.loads(file.read_text())
    assert again["rows"] == content["rows"]
    assert len(again["made_with"]) == len(content["made_with"]) + 1


def test_other_settings_are_refused(measured):
    options, _, file = measured
    before = file.read_bytes()
    done = run_benchmark("accuracy.bench_ablation", *options, "--scheme", "deploy")
    assert done.returncode == 1
    assert "was measured with scheme paper, not deploy" in done.stderr
    assert "Traceback" not in done.stderr
    assert file.read_bytes() == before


def test_larger_batches_have_as_many_images():
    from benchmarks.accuracy.bench_ablation import steps_of_as_many_images

    def run(steps, size):
        sizes = {"fine_tuning_steps": steps, "fine_tuning_batch_size": size}
        return SimpleNamespace(config=RunConfig().changed(**sizes))

    assert steps_of_as_many_images(run(400, 32), run(400, 128)) == 100
    assert steps_of_as_many_images(run(3, 32), run(3, 128)) == 1
