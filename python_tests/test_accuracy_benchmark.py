"""The benchmark of accuracy: rows, order, resuming, merging."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_scripts import run_benchmark
from runs import write_fashion_mnist

from zscgan_ext.config.configs import RunConfig
from zscgan_ext.errors import InputError

SHORT = [
    *("--synthesis-steps=3", "--fine-tuning-steps=2", "--batch-size=8", "--latent-dim=8"),
    *("--calibration-batches=1", "--device=cpu", "--threads=1"),
]
FIGURES = {"agreement": 90.0, "seconds": 1.0, "made_with": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 40 test images and 120 training images."""
    folder = write_fashion_mnist(tmp_path_factory.mktemp("images"), count=40)
    return write_fashion_mnist(folder, "train", count=120)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, data):
    """The options of a short benchmark, what it printed, and its JSON file."""
    file = tmp_path_factory.mktemp("benchmark") / "accuracy.json"
    options = [
        *(*SHORT, "--classifiers", "resnet20", "--schemes", "paper", "--bits", "w4a4"),
        *("--seeds", 1, "--data", data, "--json", file),
    ]
    done = run_benchmark("accuracy.bench_accuracy", *options)
    assert done.returncode == 0, done.stderr
    return options, done.stdout, file


def test_every_row_is_measured_once(measured):
    from benchmarks.accuracy.accuracy_cells import VARIANTS

    content = json.loads(measured[2].read_text())
    rows = {row["row"]: row for row in content["rows"]}
    assert sorted(rows) == sorted(VARIANTS)
    assert len(content["rows"]) == len(VARIANTS)
    for name, row in rows.items():
        cell = (row["classifier"], row["scheme"], row["bits"], row["seed"])
        assert cell == ("resnet20", *((None,) * 3 if name == "float" else ("paper", "w4a4", 1)))
        assert 0 <= row["top1"] <= 100
        assert (row["top1"] * 40 / 100) == pytest.approx(round(row["top1"] * 40 / 100))
    assert rows["float"]["agreement"] == 100
    assert rows["squant"]["top1"] > 80  # needs no training, so steps do not matter
    assert content["settings"]["synthesis_steps"] == 3
    assert content["settings"]["measured_on"] == "test images"
    (made,) = content["made_with"]
    assert made["torch"] == torch.__version__
    assert made["threads"] == 1
    assert "--seeds 1" in made["command"]


def test_the_report_stands_beside_the_file(measured):
    text = measured[2].with_suffix(".md").read_text()
    row = next(r for r in json.loads(measured[2].read_text())["rows"] if r["row"] == "squant")
    assert f"| SQuant rounding, ranges from batch norm | {row['top1']:.2f} |" in text
    assert "![top-1 over widths](accuracy.png)" in text
    assert measured[2].with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_benchmark_goes_on_where_it_ended(measured, tmp_path):
    options, _, file = measured
    content = json.loads(file.read_text())
    resumed = tmp_path / "accuracy.json"
    removed = ("generated_calibrated", "fine_tuned", "squant")
    rest = [row for row in content["rows"] if row["row"] not in removed]
    resumed.write_text(json.dumps({**content, "rows": rest}))
    done = run_benchmark("accuracy.bench_accuracy", *options[:-1], resumed)
    assert done.returncode == 0, done.stderr
    again = json.loads(resumed.read_text())
    figures = {row["row"]: (row["top1"], row["agreement"]) for row in content["rows"]}
    assert {row["row"]: (row["top1"], row["agreement"]) for row in again["rows"]} == figures
    assert [row["made_with"] for row in again["rows"]] == [0] * len(rest) + [1] * len(removed)


def test_a_second_width_is_measured_as_if_it_were_the_first(measured, tmp_path):
    options = measured[0]
    rows = ("generated_calibrated", "fine_tuned")
    figures = []
    for bits in (["w4a4", "w3a3"], ["w3a3"]):
        other = tmp_path / f"{len(bits)}.json"
        words = [*options[:-1], other, "--bits", *bits, "--rows", *rows]
        done = run_benchmark("accuracy.bench_accuracy", *words)
        assert done.returncode == 0, done.stderr
        found = json.loads(other.read_text())["rows"]
        figures.append([{k: r[k] for k in ("row", "top1", "agreement")} for r in found[-2:]])
    assert figures[0] == figures[1]
    assert [row["row"] for row in figures[0]] == list(rows)


def test_rows_without_generated_images_learn_no_generator(measured, tmp_path):
    options, _, file = measured
    other = tmp_path / "accuracy.json"
    done = run_benchmark("accuracy.bench_accuracy", *options[:-1], other, "--rows", "squant")
    assert done.returncode == 0, done.stderr
    figures = [
        {row["row"]: row["top1"] for row in json.loads(name.read_text())["rows"]}["squant"]
        for name in (file, other)
    ]
    assert figures[0] == figures[1]
    assert list(file.parent.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_other_settings_are_refused(measured):
    options, _, file = measured
    before = file.read_bytes()
    done = run_benchmark("accuracy.bench_accuracy", *options, "--fine-tuning-steps", 3)
    assert done.returncode == 2
    assert "was measured with fine_tuning_steps 2, not 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert file.read_bytes() == before


def test_held_out_images_are_the_last_twelfth_of_the_training_images(data, tmp_path):
    from benchmarks.accuracy.accuracy_rows import prepare_run

    config = RunConfig().changed(output=tmp_path / "run", device="cpu")
    run = prepare_run(config, str(data), held_out=True)
    whole = prepare_run(replace(config, output=tmp_path / "other"), str(data), held_out=False)
    assert (len(run.reference), len(run.evaluation)) == (110, 10)
    assert torch.equal(run.evaluation.images, whole.reference.images[110:])
    assert torch.equal(run.reference.labels, whole.reference.labels[:110])
    assert (len(whole.reference), len(whole.evaluation)) == (120, 40)


def test_important_cells_come_first():
    from benchmarks.accuracy.accuracy_cells import (
        BITS,
        CLASSIFIERS,
        IMPORTANT,
        SCHEMES,
        SEEDS,
        Cell,
        ordered_cells,
    )

    cells = ordered_cells(CLASSIFIERS, SCHEMES, BITS, SEEDS)
    assert len(set(cells)) == len(cells) == 2 * 2 * 5 * 3
    assert cells[: len(IMPORTANT)] == [Cell(*kind, seed=0) for kind in IMPORTANT]
    assert {c.seed for c in cells[len(IMPORTANT) : 2 * len(IMPORTANT)]} == {1}
    assert cells[3 * len(IMPORTANT)] == Cell("resnet20", "paper", "w8a8", 0)
    only = ordered_cells(("mobilenet_v2_small",), ("deploy",), ("w8a8", "w2a2"), (2,))
    assert [cell.bits for cell in only] == ["w8a8", "w2a2"]


def results(path: Path, rows, **settings: object) -> Path:
    """Write a file of the benchmark with these rows: seed, row, top-1."""
    cell = {"classifier": "resnet20", "scheme": "paper", "bits": "w4a4"}
    content = {
        "settings": {
            **{"measured_on": "test images", "data": "fashion-mnist", "batch_size": 8},
            **{"synthesis_steps": 3, "fine_tuning_steps": 2, "fine_tuning_batch_size": 4},
            **settings,
        },
        "made_with": [{"cpu": "a processor", "threads": 1, "torch": "2.6", "commit": "0" * 40}],
        "rows": [
            {**cell, "seed": seed, "row": row, "top1": top1, **FIGURES} for seed, row, top1 in rows
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_files_of_several_processes_give_one_report(tmp_path):
    first = [(0, "fine_tuned", 91.0), (0, "real_fine_tuned", 92.0), (0, "gdfq", 50.0)]
    second = [(1, "fine_tuned", 90.0), (1, "real_fine_tuned", 91.5), (0, "gdfq", 50.0)]
    files = [results(tmp_path / "a.json", first), results(tmp_path / "b.json", second)]
    output = tmp_path / "accuracy.md"
    done = run_benchmark("accuracy.accuracy_report", "--json", *files, "--output", output)
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    spread = statistics.stdev([91, 90])
    assert f"| fine-tuned on generated images | 90.50 ± {spread:.2f} |" in text
    assert "| GDFQ's settings, same number of images | 50.00 (1) |" in text
    gap = statistics.stdev([-1, -1.5])
    assert f"| generated less real, both fine-tuned | -1.25 ± {gap:.2f} |" in text
    assert "measured with" not in text


def test_rows_of_other_settings_are_marked(tmp_path):
    rows = [(0, "fine_tuned", 91.0), (0, "squant", 60.0), (0, "gdfq", 50.0)]
    file = results(tmp_path / "a.json", rows)
    content = json.loads(file.read_text())
    content["rows"][0]["other_settings"] = {"fine_tuning_steps": 9}
    content["rows"][2]["other_settings"] = {"synthesis_steps": 5, "fine_tuning_steps": 9}
    file.write_text(json.dumps(content))
    output = tmp_path / "accuracy.md"
    done = run_benchmark("accuracy.accuracy_report", "--json", file, "--output", output)
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    assert "\n° measured with `--fine-tuning-steps 9`.\n" in text
    assert "\n† measured with `--synthesis-steps 5`, `--fine-tuning-steps 9`.\n" in text
    assert "| fine-tuned on generated images | 91.00° |" in text
    assert "| SQuant rounding, ranges from batch norm | 60.00 |" in text
    assert "| GDFQ's settings, same number of images | 50.00† |" in text


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([(0, "gdfq", 51.0)], {}, "another accuracy"),
        ([(1, "gdfq", 50.0)], {"batch_size": 9}, "batch_size 9, not 8"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, rows, settings, message):
    from benchmarks.accuracy.accuracy_results import merged

    files = [
        results(tmp_path / "a.json", [(0, "gdfq", 50.0)]),
        results(tmp_path / "b.json", rows, **settings),
    ]
    with pytest.raises(InputError, match=message):
        merged(files)


def test_a_file_of_something_else_is_refused(tmp_path):
    from benchmarks.accuracy.accuracy_results import read_file

    file = tmp_path / "other.json"
    file.write_text('{"rows": []}')
    with pytest.raises(InputError, match="no result of this benchmark"):
        read_file(file)
