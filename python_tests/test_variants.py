"""The variants of a run: one registry, from which all that shows them takes their rows."""

import json
from dataclasses import replace

import pytest
from runs import OWN, TINY, write_fashion_mnist
from safetensors.torch import load_file

from benchmarks.accuracy import accuracy_cells, bench_accuracy
from zscgan_ext.run_folder.checkpoint_file import checkpoint_files, read_checkpoint
from zscgan_ext.stages import variants
from zscgan_ext.stages.sequence import INSTANT_SAVED
from zscgan_ext.stages.variants import FLOAT, VARIANTS, Variant
from zscgan_ext.train import main

DECLARED = [value for value in vars(variants).values() if isinstance(value, Variant)]
FINE_TUNED = [variant for variant in VARIANTS.values() if variant.fine_tune]
CALIBRATED = [v for v in VARIANTS.values() if v is not FLOAT and not v.fine_tune]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that measured every variant, and what it printed."""
    data = write_fashion_mnist(tmp_path_factory.mktemp("data"), count=20)
    write_fashion_mnist(data, "train", count=20)
    folder = tmp_path_factory.mktemp("run")
    images = [f"--evaluation-data={data}", f"--reference-data={data}"]
    options = ["--report", "--checkpoint-every=1", f"--output={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(
            "zscgan_ext.whole_run.print", lambda *a, **_: printed.append(a[0]), raising=False
        )
        assert main([*TINY, *images, *options]) == 0
    return folder, "\n".join(printed)


@pytest.mark.parametrize("known", [DECLARED, list(accuracy_cells.VARIANTS.values())])
def test_keys_labels_and_stages_are_unique(known):
    assert len(known) >= 6
    assert len({variant.key for variant in known}) == len(known)
    assert len({variant.label for variant in known}) == len(known)
    stages = ["synthesis", "diversity", INSTANT_SAVED, "saving"]
    for variant in known:
        # A variant without fine-tuning has no stage for it.
        stages += {variant.calibration_stage, variant.training_stage, variant.evaluation_stage}
    assert len(set(stages)) == len(stages)
    assert len({variant.student_name for variant in known}) == len(known)


def test_all_but_that_of_the_python_api_are_rows():
    assert [v.key for v in DECLARED if v.key not in VARIANTS] == ["given_fine_tuned"]
    assert all(VARIANTS[variant.key] is variant for variant in VARIANTS.values())
    assert next(iter(VARIANTS)) == FLOAT.key


def test_metrics_and_predictions_have_all_rows_in_order(finished):
    folder, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    for measure in ("top1", "agreement"):
        assert metrics[measure].keys() == VARIANTS.keys()
        assert all(0 <= metrics[measure][key] <= 100 for key in VARIANTS)
    assert metrics["agreement"]["float"] == 100
    assert load_file(folder / "predictions.safetensors").keys() == VARIANTS.keys()
    # Only fine-tuning starts from ranges that the logits choose.
    assert metrics["initial_ranges"].keys() == {variant.key for variant in FINE_TUNED}


def test_the_table_and_the_report_have_all_rows_in_order(finished):
    folder, printed = finished
    _, *rows = printed[printed.index("top-1 %") :].splitlines()[: 1 + len(VARIANTS)]
    assert len(rows) == len(VARIANTS)
    page = (folder / "report.html").read_text()
    place = 0
    for row, variant in zip(rows, VARIANTS.values(), strict=True):
        assert row.startswith(f"{variant.label} ")
        place = page.index(variant.label, place) + 1


def test_the_log_and_the_checkpoints_have_their_stages(finished):
    folder, _ = finished
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = list(dict.fromkeys(entry["stage"] for entry in log))
    assert logged == ["synthesis", *(variant.training_stage for variant in FINE_TUNED)]
    last = read_checkpoint(checkpoint_files(folder / "checkpoints")[-1])
    expected = {"synthesis", "diversity", INSTANT_SAVED, "saving", FLOAT.evaluation_stage}
    for variant in (*CALIBRATED, *FINE_TUNED):
        expected |= {variant.calibration_stage, variant.training_stage, variant.evaluation_stage}
    # The last checkpoint is one of the last fine-tuning's last step.
    assert expected - set(last["finished"]) <= {FINE_TUNED[-1].key, FINE_TUNED[-1].evaluation_stage}
    assert set(last["finished"]) <= expected
    assert len(last["finished"]) == len(set(last["finished"]))


def test_rows_of_the_benchmark_are_those_of_a_run_under_labels_of_their_own():
    rows = accuracy_cells.VARIANTS
    assert all(variant.key == key for key, variant in rows.items())
    shared = rows.keys() & VARIANTS.keys()
    # Noise is rounded to nearest there, and no generator is learned for an instant student.
    assert shared == VARIANTS.keys() - {"noise_calibrated", "instant"}
    for key in shared:
        assert replace(rows[key], label=VARIANTS[key].label) == VARIANTS[key]


def test_an_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        bench_accuracy.parse(["--json=x", "--rows", "fine_tunde"])
    assert ended.value.code == 2
    assert "invalid choice: 'fine_tunde'" in capsys.readouterr().err
    assert bench_accuracy.parse(["--json=x", "--rows", "fine_tuned"]).rows == ["fine_tuned"]


def test_a_run_without_images_measures_no_row(tmp_path, capsys):
    assert OWN in TINY  # a classifier that comes without images
    assert main([*TINY, f"--output={tmp_path}"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["top1"] == metrics["agreement"] == dict.fromkeys(VARIANTS)
    assert not (tmp_path / "predictions.safetensors").exists()
    assert "top-1 %" not in capsys.readouterr().out
