"""The benchmark of training steps: rows, arithmetic, the plan and its subjects."""

import pytest
import torch
from benchmark_scripts import DOCUMENT, rows_of, run_benchmark

from zscgan_ext.images.preprocessing import Preprocessing

KEYS = {
    *("classifier", "stage", "batch", "device", "implementation", "precision", "median_ms"),
    "peak_memory_bytes",
}


def without_noise(monkeypatch):
    """Let generators, plain ones and the trainer's, add no noise."""
    from benchmarks.baselines import plain_training
    from zscgan_ext.synthesis import generator

    monkeypatch.setattr(generator, "NOISE", 0.0)
    monkeypatch.setattr(plain_training, "NOISE", 0.0)


@pytest.fixture(scope="module")
def measured_steps(tmp_path_factory):
    """What a run on two images of resnet20 wrote and printed."""
    path = tmp_path_factory.mktemp("benchmark") / "train_step.json"
    options = ("--quick", "--stages", "teacher", "--batch", 2, "--samples", 1, "--json", path)
    completed = run_benchmark("training.bench_train_step", *options, OMP_NUM_THREADS="1")
    assert completed.returncode == 0, completed.stderr
    return path, completed.stdout


def test_every_subject_has_a_row(measured_steps):
    rows = rows_of(measured_steps[0])
    assert all(set(row) == KEYS for row in rows)
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


def test_the_table_of_steps_has_the_ratios(measured_steps, tmp_path):
    from benchmarks.training.train_step_report import update_documentation

    path, printed = measured_steps
    eager, native, matched = rows_of(measured_steps[0])
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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_plan_has_every_classifier_stage_and_implementation(device):
    from benchmarks.training.bench_train_step import groups, parse

    planned = [s for group in groups(parse(["--device", device])) for s in group]
    assert len(set(planned)) == len(planned)
    for classifier in ("resnet20", "resnet18", "resnet50", "mobilenet_v2"):
        own = [s for s in planned if s.classifier == classifier]
        expected = {16} if device == "cpu" else {16, 128}
        for stage in ("generator_step", "fine_tuning_step", "teacher", "teacher_matched"):
            if classifier == "resnet20":  # the trainer's own sizes
                expected = {32} if stage == "fine_tuning_step" else {64}
            assert {s.batch for s in own if s.stage == stage} == expected
        pairs = {(s.stage, s.implementation) for s in own}
        for stage in ("generator_step", "fine_tuning_step", "teacher"):
            assert {(stage, "eager"), (stage, "native")} <= pairs
        assert ("teacher_matched", "native") in pairs
        assert ("generator_step", "alike") in pairs
        compiled = device == "cuda" or classifier == "resnet20"
        assert (("generator_step", "compiled") in pairs) == compiled
    assert {s.classifier for g in groups(parse(["--quick"])) for s in g} == {"resnet20"}


@pytest.mark.parametrize("stage", ["generator_step", "fine_tuning_step"])
def test_eager_steps_are_plain_and_native_ones_are_the_trainers(stage):
    from benchmarks.training.training_subjects import STAGES, Parts, Subject

    def facts(implementation):
        parts = Parts(Subject("resnet20", stage, implementation, 2, "cpu", "bfloat16"))
        assert torch.isfinite(STAGES[stage](parts)()).all()
        facts = parts.execution.facts()
        return [facts[name] for name in ("memory_format", "precision", "keep_freed_memory")]

    assert facts("eager") == ["contiguous", "float32", False]
    assert facts("alike") == ["channels_last", "bfloat16", False]
    assert facts("native") == ["channels_last", "bfloat16", True]


@pytest.mark.parametrize("size", [28, 72])
def test_the_plain_generator_makes_the_same_images(size, monkeypatch):
    from benchmarks.baselines import plain_training
    from zscgan_ext.synthesis import generator as package

    without_noise(monkeypatch)
    preprocessing = Preprocessing(3, size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    images = []
    for kind in (package.ConditionalGenerator, plain_training.PlainGenerator):
        torch.manual_seed(0)
        generator = kind(10, 8, preprocessing)
        images.append(
            generator(
                torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6)
            )
        )
    torch.testing.assert_close(images[1], images[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["generator_step", "fine_tuning_step"])
def test_plain_steps_have_the_losses_of_the_trainers(stage, monkeypatch):
    from benchmarks.training import training_subjects

    without_noise(monkeypatch)

    def losses(implementation):
        subject = training_subjects.Subject("resnet20", stage, implementation, 16, "cpu", "float32")
        step = training_subjects.new_step(subject)
        return [float(step().flatten()[0]) for _ in range(2)]

    (first, second), (own_first, own_second) = losses("alike"), losses("native")
    assert first == pytest.approx(own_first, rel=1e-4)
    # Adam's first step has the sign of each gradient, whose rounding turns some that are near zero.
    assert second == pytest.approx(own_second, rel=1e-2)
    assert abs(second - first) > 5e-2 * first


def test_torchvision_classifiers_get_statistics_of_their_activations():
    from benchmarks.training.training_subjects import build_classifier

    torch.manual_seed(0)
    model, preprocessing = build_classifier("resnet18")
    assert not model.training
    images = torch.randn(4, *preprocessing.shape)
    inputs = []
    layer = model.get_submodule("layer4.1.bn2")
    layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        logits = model(images)
    assert logits.abs().max() < 100
    variance = inputs[0].var((0, 2, 3))
    assert 0.5 < (variance / layer.running_var).median() < 2


def test_a_worker_that_fails_ends_the_benchmark():
    from benchmarks.training.bench_train_step import measure
    from benchmarks.training.training_subjects import Subject

    with pytest.raises(SystemExit, match=r"resnet20.*exit code 1"):
        list(measure([Subject("resnet20", "no_such_stage", "native", 2, "cpu", "float32")], 1))
