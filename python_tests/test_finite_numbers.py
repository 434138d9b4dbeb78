"""Numbers that go wrong are found, named and undone."""

import copy
import json
import math
from dataclasses import replace

import networks
import pytest
import torch
from networks import RGB8, normal_batches, small_gray, small_residual
from runs import TINY
from small_training import SeenOps, new_trainer, take_step

from zscgan_ext.classifiers.batch_norm import zero_variance_warnings
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.dead_quantizers import dead_quantizers
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.run_folder.checkpoint_file import checkpoint_files, read_checkpoint
from zscgan_ext.stages import student_stages
from zscgan_ext.stages.generator_stage import continued_generator_training
from zscgan_ext.train import main
from zscgan_ext.training.finite_numbers import FiniteNumbers, NonFiniteError


def holders(trainer):
    return [*trainer.models().values(), trainer]


def watch(trainer):
    """Watch a trainer whose random numbers are held, too."""
    rngs = [trainer.rng] if hasattr(trainer, "rng") else []

    def snapshot():
        states = [holder.state_dict() for holder in holders(trainer)]
        drawn = [rng.get_state() for rng in rngs]
        return copy.deepcopy((states, drawn, torch.get_rng_state()))

    def restore(state):
        states, drawn, default = copy.deepcopy(state)
        for holder, own in zip(holders(trainer), states, strict=True):
            holder.load_state_dict(own)
        for rng, own in zip(rngs, drawn, strict=True):
            rng.set_state(own)
        torch.set_rng_state(default)

    return FiniteNumbers([trainer], snapshot, restore)


def flat(state) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state
    return [t for v in values if isinstance(v, dict | list | tuple | torch.Tensor) for t in flat(v)]


def run_until_found(trainer, at, steps=8):
    """Take steps, look after each of `at`; return the error and the state of the last good look."""
    numbers = watch(trainer)
    for step in range(1, steps + 1):
        take_step(trainer)
        if step in at:
            good = numbers.good
            try:
                numbers.check()
            except NonFiniteError as error:
                return str(error), good, numbers.snapshot()
    raise AssertionError("nothing was found")


def poison(trainer, layer, step):
    """Let a layer give an infinite value in one step, whenever that is taken."""

    def hook(module, inputs, output):
        if trainer.steps_taken + 1 == step:
            return output * torch.where(torch.rand_like(output) < 0.5, torch.inf, 1.0)
        return output

    layer.register_forward_hook(hook)


@pytest.mark.parametrize("step", [3, 4, 5, 6])
def test_a_layer_with_an_infinite_output_is_named_with_its_step(step):
    trainer = new_trainer("generator")
    poison(trainer, trainer.generator.blocks[0].conv, step)
    message, good, now = run_until_found(trainer, at=(2, 6))
    assert message.startswith(
        f"step {step}: the output of blocks.0.conv of the generator is not finite; "
    )
    assert "--synthesis-learning-rate" in message
    # All is as it was when the numbers were last good, after step 2.
    assert trainer.steps_taken == 2
    assert all(torch.equal(a, b) for a, b in zip(flat(good), flat(now), strict=True))
    assert len(flat(good)) > 50


def test_a_layer_of_the_student_is_named():
    trainer = new_trainer("student-deploy")
    trainer.batches = normal_batches(20, 8, *RGB8.shape)
    layer = trainer.student.graph.get_submodule("project")
    poison(trainer, layer, 1)
    # Batches cannot be drawn again here, but the first step after the restart is bad as well.
    message, *_ = run_until_found(trainer, at=(1,))
    assert message.startswith("step 1: the output of project of the student is not finite; ")
    # Nothing had learned yet: a shorter step would change nothing.
    assert "the cause is the classifier, or a weight of the loss" in message
    assert "learning-rate" not in message


@pytest.mark.parametrize("step", [1, 4])
def test_a_classifier_that_gives_bad_numbers_is_the_cause(step):
    trainer = new_trainer("generator")
    layers = [m for m in trainer.teacher.modules() if isinstance(m, torch.nn.Linear)]
    poison(trainer, layers[-1], step)
    message, *_ = run_until_found(trainer, at=(5,))
    assert message.startswith(f"step {step}: the output of ")
    assert "of the classifier is not finite; the classifier itself turns images into" in message
    assert "learning-rate" not in message


@pytest.mark.parametrize(("step", "part"), [(1, "the cause is the classifier"), (3, "-rate")])
def test_gradients_of_the_first_step_are_none_of_its_length(step, part):
    trainer = new_trainer("generator")
    weight = trainer.generator.linear.weight
    weight.register_hook(lambda g: g * torch.nan if trainer.steps_taken == step - 1 else g)
    message, *_ = run_until_found(trainer, at=(5,))
    assert message.startswith(f"step {step}: the gradient of linear.weight of the generator")
    assert part in message


def test_a_gradient_that_is_not_a_number_is_named():
    trainer = new_trainer("generator")
    weight = trainer.generator.linear.weight
    weight.register_hook(lambda g: g * torch.nan if trainer.steps_taken == 3 else g)
    message, *_ = run_until_found(trainer, at=(5,))
    assert message.startswith(
        "step 4: the gradient of linear.weight of the generator is not finite"
    )


def test_wrong_inputs_are_named():
    trainer = new_trainer("student-deploy")
    images, labels = next(normal_batches(1, 8, *RGB8.shape))
    images[3, 1, 2, 2] = torch.nan
    trainer.batches = iter([(images, labels)] * 2)
    message, *_ = run_until_found(trainer, at=(1,))
    assert message.startswith("step 1: the input is not finite; what the training learns from")


def test_an_infinite_loss_alone_is_found():
    trainer = new_trainer("generator")
    finite = trainer.loss

    def infinite(*batch: torch.Tensor):
        loss, values = finite(*batch)
        return loss + (torch.inf if trainer.steps_taken == 1 else 0), values

    trainer.loss = infinite
    message, *_ = run_until_found(trainer, at=(4,))
    assert message.startswith("step 2: ")


def test_weights_that_had_grown_are_the_likely_cause():
    trainer = new_trainer("generator")
    with torch.no_grad():
        trainer.generator.linear.weight.mul_(1e6)
    poison(trainer, trainer.generator.pixel_bn, 2)
    message, *_ = run_until_found(trainer, at=(3,))
    assert "weights had grown to" in message


def test_float16_is_the_likely_cause():
    trainer = new_trainer("generator")
    trainer.execution = replace(trainer.execution, precision_name="float16")
    poison(trainer, trainer.generator.pixel_bn, 2)
    message, *_ = run_until_found(trainer, at=(3,))
    assert "float16 ends at 65504" in message


def test_looking_changes_nothing_and_only_looking_waits():
    plain = new_trainer("generator")
    expected = [take_step(plain).tolist() for _ in range(5)]
    trainer = new_trainer("generator")
    numbers = watch(trainer)
    values = []
    for _ in range(5):
        with SeenOps() as seen:
            values.append(take_step(trainer))
        assert "aten::_local_scalar_dense" not in seen.names
        numbers.check()
    assert [v.tolist() for v in values] == expected


class RootOfZero(torch.nn.Module):
    """Adds nothing, but the derivative of what it adds is not a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (x - x).abs().sqrt()


def root_of_zero(num_classes=10):
    model = small_gray(num_classes)
    return torch.nn.Sequential(model[:3], RootOfZero(), model[3:])


def test_a_classifier_without_gradients_is_no_matter_of_rates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(networks, "small_gray", root_of_zero)
    assert main([*TINY, f"--output={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: synthesis: step 1: the gradient of ")
    assert "look in the classifier for a root, logarithm or division at zero" in line
    assert "learning-rate" not in line


# ---- in a run ------------------------------------------------------------------------------------


def no_constant(text):
    raise AssertionError(f"{text} in the log")


@pytest.mark.parametrize(
    ("arguments", "stage", "option"),
    [
        (["--synthesis-learning-rate=1e30"], "synthesis: step ", "--synthesis-learning-rate"),
        (["--fine-tuning-learning-rate=1e38"], "fine_tuned: step ", "--fine-tuning-learning-rate"),
    ],
)
def test_a_run_whose_numbers_go_wrong_stops_with_one_line(
    tmp_path, capsys, arguments, stage, option
):
    assert main([*TINY, *arguments, f"--output={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {stage}")
    assert "is not finite" in line
    assert option in line
    assert not (tmp_path / "metrics.json").exists()
    # The checkpoint is from before, and so is the log in it.
    state = read_checkpoint(checkpoint_files(tmp_path / "checkpoints")[-1])
    learned = flat(state["held"]["generator"])
    assert all(bool(tensor.isfinite().all()) for tensor in learned)
    for entry in state["held"]["results"]["log"].splitlines():
        json.loads(entry, parse_constant=no_constant)


def test_the_generator_is_watched_while_the_student_learns(tmp_path, capsys, monkeypatch):
    def failing(run, generator):
        """A trainer whose third step has an infinite gradient."""
        trainer = continued_generator_training(run, generator)
        finite = trainer.loss

        def infinite(*batch):
            loss, values = finite(*batch)
            return loss * (torch.inf if trainer.steps_taken == 2 else 1), values

        trainer.loss = infinite
        return trainer

    monkeypatch.setattr(student_stages, "continued_generator_training", failing)
    arguments = [*TINY, "--training=alternating", f"--output={tmp_path}"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: fine_tuned: step 3: the gradient of ")
    assert "of the generator is not finite" in line
    assert "--synthesis-learning-rate" in line
    state = read_checkpoint(checkpoint_files(tmp_path / "checkpoints")[-1])
    # All is as it was at the last good look, after step 2 of both trainers.
    assert state["steps"] == 8
    for trainer in ("alternating/training", "fine_tuned/training"):
        held = state["held"][trainer]
        assert held["steps_taken"] == 2
        assert {float(own["step"]) for own in held["optimizer"].values()} == {2.0}
    assert all(bool(tensor.isfinite().all()) for tensor in flat(state["held"]["generator"]))


def warnings_of(tmp_path, capsys, *arguments: str):
    """Run the program; return its warnings, which it prints and keeps."""
    assert main([*TINY, *arguments, f"--output={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    assert json.loads((tmp_path / "metrics.json").read_text())["warnings"] == printed
    return printed


def changed(monkeypatch, change):
    def classifier(num_classes=10):
        model = small_gray(num_classes)
        with torch.no_grad():
            change(model)
        return model

    monkeypatch.setattr(networks, "small_gray", classifier)


def test_classes_that_are_never_generated_are_named(tmp_path, capsys, monkeypatch):
    changed(monkeypatch, lambda model: model[-1].bias[0].fill_(1e4))
    assert warnings_of(tmp_path, capsys, "--stop-after=synthesis") == [
        "9 of 10 classes are never generated, as the classifier sees it: 1, 2, 3, 4, 5, ..."
    ]


def test_a_batch_norm_without_variance_is_named(tmp_path, capsys, monkeypatch):
    changed(monkeypatch, lambda model: model[1].running_var[:2].fill_(0))
    lines = warnings_of(tmp_path, capsys, "--stop-after=synthesis")
    expected = "batch norm 1 of the classifier has no variance in 2 of 4 channels"
    assert sum(line.startswith(expected) for line in lines) == 1


def test_denormal_variances_count_as_none_and_small_ones_do_not():
    model = small_gray()
    model[1].running_var.copy_(torch.tensor([5.6e-45, 1e-30, 1.0, 0.0]))
    (line,) = zero_variance_warnings(model)
    assert "in 2 of 4 channels" in line
    assert zero_variance_warnings(small_gray()) == []


def test_many_batch_norms_without_variance_are_one_line():
    model = torch.nn.Sequential(*(torch.nn.BatchNorm2d(4) for _ in range(30)))
    for index, norm in enumerate(model):
        norm.running_var[: 1 + index % 3] = 0
    (line,) = zero_variance_warnings(model)
    assert line.startswith("30 batch norms of the classifier have no variance in 60 channels, ")
    assert line.endswith(": 0 (1 of 4), 1 (2 of 4), 2 (3 of 4), 3 (1 of 4), 4 (2 of 4), ...")


# ---- dead quantizers -----------------------------------------------------------------------------


@pytest.fixture
def student():
    student = convert(small_residual(), Scheme("deploy", 4, 4), RGB8.shape)
    calibrate(student, normal_batches(2, 8, *RGB8.shape), 2)
    return student


@pytest.fixture
def images():
    return next(normal_batches(1, 8, *RGB8.shape, seed=5))[0]


def test_a_calibrated_student_has_none(student, images):
    assert dead_quantizers(student, images) == []


@pytest.mark.parametrize("scheme", ["deploy", "paper"])
@pytest.mark.parametrize("bits", [2, 8])
def test_few_bits_are_not_dead(images, scheme, bits):
    student = convert(small_residual(), Scheme(scheme, bits, bits), RGB8.shape)
    calibrate(student, normal_batches(2, 8, *RGB8.shape), 2)
    assert dead_quantizers(student, images) == []


@pytest.mark.parametrize(
    ("log_scale", "fault"),
    [
        (math.log(1e6), "it rounds every value to zero"),
        (math.log(1e-9), "it clips every value but zero, its scale is 1.0e-09"),
        (-200.0, "its scale is 0.0"),
        (200.0, "its scale is inf"),
        (math.nan, "its scale is nan"),
    ],
)
def test_a_dead_activation_quantizer_is_named(student, images, log_scale, fault):
    with torch.no_grad():
        student.graph.activation_quantizers["add"].log_scale.fill_(log_scale)
    assert f"activation quantizer add: {fault}" in dead_quantizers(student, images)


@pytest.mark.parametrize("log_scale", [math.log(1e6), math.log(1e-9)])
def test_dead_channels_of_weights_are_counted(student, images, log_scale):
    with torch.no_grad():
        student.graph.get_submodule("project").log_scale[2:5].fill_(log_scale)
    assert dead_quantizers(student, images) == [
        "weight quantizer project: 3 of 8 output channels are clipped or rounded to zero altogether"
    ]


@pytest.mark.parametrize(
    ("log_scale", "fault"),
    [
        (math.log(1e6), "round every value to zero"),
        (math.log(1e-9), "clip every value but zero"),
        (200.0, "have scales that are no positive numbers"),
    ],
)
def test_many_dead_activation_quantizers_are_one_line(student, images, log_scale, fault):
    # Behind the first one biases still give values to the other.
    names = [next(iter(student.named_activation_quantizers())), "add"]
    with torch.no_grad():
        for name in names:
            student.graph.activation_quantizers[name].log_scale.fill_(log_scale)
    lines = [line for line in dead_quantizers(student, images) if fault in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"2 activation quantizers {fault}: {names[0]} (its scale is ")


def test_dead_channels_of_many_layers_are_one_line(student, images):
    layers = student.named_layers()
    with torch.no_grad():
        for layer in layers.values():
            layer.log_scale[:2].fill_(math.log(1e6))
    (line,) = [line for line in dead_quantizers(student, images) if "weight" in line]
    start = f"{len(layers)} weight quantizers: {2 * len(layers)} output channels are clipped or "
    assert line.startswith(start)
    assert f"{next(iter(layers))} (2 of 8)" in line


def test_a_quantizer_of_zeros_is_not_dead():
    model = small_residual()
    with torch.no_grad():
        model.project_bn.weight.zero_()
        model.project_bn.bias.zero_()
    student = convert(model, Scheme("deploy", 4, 4), RGB8.shape)
    calibrate(student, normal_batches(2, 8, *RGB8.shape), 2)
    assert dead_quantizers(student, next(normal_batches(1, 8, *RGB8.shape))[0]) == []


def test_pruned_channels_are_not_dead(student, images):
    with torch.no_grad():
        student.graph.get_submodule("project").layer.weight[2:5].zero_()
    assert dead_quantizers(student, images) == []
