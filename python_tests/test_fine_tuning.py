"""Fine-tuning: its loss in closed form, and what it may and may not change."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from networks import RGB8, normal_batches, small_residual
from tensors import sample
from torch import nn

from zscgan_ext.config.configs import ExecutionConfig, FineTuningConfig
from zscgan_ext.config.values import LayerBits
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.fine_tuning import StudentTrainer, mirrored, student_loss
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.training.execution import choose_execution

LABELS = torch.tensor([0, 2, 1])
TOY = FineTuningConfig(steps=40, learning_rate=4.5e-2, feature_weight=0.0, mirror=False)


def on_a_cpu(**settings):
    """How steps are executed there."""
    return choose_execution(ExecutionConfig(**settings), torch.device("cpu"))


def logits(seed):
    return 3 * sample(3, 4, seed=seed)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_from_the_teacher(temperature):
    config = FineTuningConfig(temperature=temperature, distillation_weight=0.7, label_weight=0.0)
    student, teacher = logits(0), logits(1)
    p = (teacher.double() / temperature).softmax(1)
    q = (student.double() / temperature).softmax(1)
    expected = 0.7 * temperature**2 * (p * (p / q).log()).sum(1).mean()
    assert student_loss(student, teacher, LABELS, config).item() == pytest.approx(expected.item())


def test_labels_add_their_cross_entropy():
    config = FineTuningConfig(distillation_weight=0.0, label_weight=0.3)
    probabilities = logits(0).double().softmax(1)
    expected = -0.3 * probabilities[range(3), LABELS].log().mean()
    loss = student_loss(logits(0), logits(1), LABELS, config)
    assert loss.item() == pytest.approx(expected.item())


def test_equal_logits_have_no_distillation_loss_and_no_gradient():
    student = logits(0).requires_grad_()
    loss = student_loss(student, logits(0), LABELS, FineTuningConfig(label_weight=0.0))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_losses_of_half_precision_logits_are_float32():
    loss = student_loss(logits(0).bfloat16(), logits(1).bfloat16(), LABELS, FineTuningConfig())
    assert loss.dtype == torch.float32


def fine_tuned(scheme, config=TOY, execution=None):
    """A calibrated student after fine-tuning, its float teacher, and what each step measured."""
    teacher = small_residual()
    student = convert(teacher, scheme, RGB8.shape)
    calibrate(student, normal_batches(2, 16, *RGB8.shape, seed=1), 2)
    return student, teacher, fine_tune(student, teacher, config, execution)


def fine_tune(student, teacher, config, execution=None):
    """Take all steps, each on a batch of its own; return what they measured."""
    batches = normal_batches(config.steps, 16, *RGB8.shape, seed=2)
    trainer = StudentTrainer(student, teacher, batches, config, execution or on_a_cpu())
    measured = [trainer.step(trainer.sample()).tolist() for _ in range(config.steps)]
    return [SimpleNamespace(**dict(zip(trainer.metrics, m, strict=True))) for m in measured]


@pytest.mark.parametrize("name", ["deploy", "paper"])
def test_the_loss_falls(name):
    _, _, steps = fine_tuned(Scheme(name, 2, 3))
    assert len(steps) == 40
    losses = [step.loss for step in steps]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    assert all(0 <= step.agreement <= 100 for step in steps)


def test_steps_that_change_nothing_report_one_loss():
    config = replace(TOY, learning_rate=1e-30, steps=2)
    teacher = small_residual()
    student = convert(teacher, Scheme("deploy", 4, 4), RGB8.shape)
    calibrate(student, normal_batches(2, 16, *RGB8.shape, seed=1), 2)
    with torch.no_grad():  # far away: the divergence of near logits would mostly be rounding
        student.layers[-1].layer.weight.mul_(-1)
    steps = fine_tune(student, teacher, config)
    images, labels = next(normal_batches(1, 16, *RGB8.shape, seed=2))
    with torch.no_grad():
        expected = student_loss(student(images), teacher(images), labels, config)
    assert steps[0].loss == pytest.approx(expected.item(), rel=1e-5)


def test_features_add_their_distance():
    config = replace(TOY, learning_rate=1e-30, steps=1, distillation_weight=0.0)
    _, _, (one,) = fine_tuned(Scheme("paper", 3, 3), replace(config, feature_weight=1.0))
    _, _, (ten,) = fine_tuned(Scheme("paper", 3, 3), replace(config, feature_weight=10.0))
    assert one.loss > 0.01
    assert ten.loss == pytest.approx(10 * one.loss, rel=1e-5)


@pytest.mark.parametrize("name", ["deploy", "paper"])
def test_eight_bits_are_near_the_teacher_in_every_feature_map(name):
    """Also where a feature map is that of a convolution and the batch norm folded into it."""
    config = replace(TOY, feature_weight=1.0, distillation_weight=0.0, steps=1)
    _, _, (step,) = fine_tuned(Scheme(name, 8, 8), config)
    assert 0 < step.loss < 1e-2


@pytest.mark.parametrize("name", ["deploy", "paper"])
def test_feature_maps_come_closer(name):
    teacher = small_residual()
    student = convert(teacher, Scheme(name, 6, 6), RGB8.shape)
    calibrate(student, normal_batches(2, 16, *RGB8.shape, seed=1), 2)
    with torch.no_grad():
        for layer in student.layers:
            layer.layer.weight.mul_(0.8)
    config = replace(TOY, feature_weight=1.0, distillation_weight=0.0, learning_rate=0.3)
    losses = [step.loss for step in fine_tune(student, teacher, config)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def scales_of(student):
    return [value.exp() for name, value in student.named_parameters() if "log_scale" in name]


@pytest.mark.parametrize("name", ["deploy", "paper"])
def test_scales_stay_positive_at_a_huge_learning_rate(name):
    config = replace(TOY, learning_rate=15.0, steps=6)
    student, _, steps = fine_tuned(Scheme(name, 4, 4), config)
    scales = scales_of(student)
    assert len(scales) == (10 if name == "deploy" else 2)
    assert all((scale > 0).all() and scale.isfinite().all() for scale in scales)
    assert all(torch.isfinite(torch.tensor(step.loss)) for step in steps)


def test_batch_norm_keeps_its_statistics():
    student, teacher, _ = fine_tuned(Scheme("paper", 4, 4))
    for name in ("stem_bn", "depthwise_bn", "project_bn"):
        norm, original = student.graph.get_submodule(name), teacher.get_submodule(name)
        assert torch.equal(norm.running_mean, original.running_mean)
        assert torch.equal(norm.running_var, original.running_var)
        assert not norm.training


@pytest.mark.parametrize("name", ["deploy", "paper"])
def test_every_layer_is_trained_and_the_teacher_is_not(name):
    student, teacher, _ = fine_tuned(Scheme(name, 4, 4))
    untouched = convert(small_residual(), Scheme(name, 4, 4), RGB8.shape)
    for layer, before in zip(student.layers, untouched.layers, strict=True):
        assert not torch.equal(layer.layer.weight, before.layer.weight)
    original = small_residual().state_dict()
    assert all(torch.equal(value, original[key]) for key, value in teacher.state_dict().items())


def test_no_step_changes_nothing():
    teacher = small_residual()
    student = convert(teacher, Scheme("deploy", 4, 4), RGB8.shape)
    calibrate(student, normal_batches(2, 8, *RGB8.shape), 2)
    before = copy.deepcopy(student.state_dict())
    assert fine_tune(student, teacher, replace(TOY, steps=0)) == []
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_bfloat16_trains_float32_parameters():
    student, _, steps = fine_tuned(Scheme("deploy", 4, 4), TOY, on_a_cpu(precision="bfloat16"))
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert sum(s.loss for s in steps[-8:]) < sum(s.loss for s in steps[:8])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in student.modules())


@pytest.mark.parametrize("name", ["deploy", "paper"])
@pytest.mark.parametrize(("bits", "steps"), [((2, 8), 3), ((8, 3), 7), ((4, 4), 15)])
def test_learning_rates_are_relative_to_the_narrower_width(name, bits, steps):
    student = convert(small_residual(), Scheme(name, *bits), RGB8.shape)
    trainer = StudentTrainer(student, small_residual(), iter(()), TOY, on_a_cpu())
    groups = trainer.optimizer.param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates.keys() == {id(p) for p in student.parameters()}
    for layer in student.layers:
        weight = layer.layer.weight
        step = layer.qparams().scale.mean().item()
        assert rates.pop(id(weight)) == pytest.approx(100 * step * TOY.learning_rate / steps)
    assert set(rates.values()) == {TOY.learning_rate / steps}


class TwoLayers(nn.Sequential):
    """Two convolutions without biases, the first times a factor, the second over it."""

    def __init__(self, factor):
        first, second = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 6, bias=False)
        with torch.no_grad():
            first.weight.copy_(0.2 * factor * sample(8, 3, 3, 3, seed=3))
            second.weight.copy_(0.1 / factor * sample(4, 8, 6, 6, seed=4))
        super().__init__(first, nn.ReLU(), second, nn.Flatten())


def integers_after_fine_tuning(factor):
    teacher = TwoLayers(factor).eval()
    layers = {"0": LayerBits(2, 8), "2": LayerBits(2, 8)}
    student = convert(teacher, Scheme("deploy", 2, 8, layers), RGB8.shape)
    calibrate(student, normal_batches(2, 16, *RGB8.shape, seed=1), 2)
    before = [layer_integers(layer) for layer in student.layers]
    fine_tune(student, teacher, FineTuningConfig(steps=30, mirror=False))
    return before, [layer_integers(layer) for layer in student.layers]


def layer_integers(layer):
    weight, scale = layer.layer.weight.detach(), layer.qparams().scale.detach()
    return (weight / scale.view(-1, 1, 1, 1)).round().clamp(-2, 1)


@pytest.mark.parametrize("factor", [1 / 64, 64])
def test_as_many_integers_change_however_large_the_weights_of_a_layer_are(factor):
    before, after = integers_after_fine_tuning(1)
    scaled_before, scaled_after = integers_after_fine_tuning(factor)
    assert all(map(torch.equal, before, scaled_before))
    for start, end, scaled_end in zip(before, after, scaled_after, strict=True):
        changed = (end != start).float().mean().item()
        assert 0.02 < changed < 0.5
        assert (scaled_end != start).float().mean().item() == pytest.approx(changed, rel=0.3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_image_is_mirrored_or_as_it_was(memory_format):
    images = sample(200, 3, 4, 6).contiguous(memory_format=memory_format)
    torch.manual_seed(0)
    found = mirrored(images)
    assert found.is_contiguous(memory_format=memory_format)
    is_mirrored = (found == images.flip(-1)).flatten(1).all(1)
    is_as_it_was = (found == images).flatten(1).all(1)
    assert torch.equal(is_mirrored, ~is_as_it_was)
    assert 70 < is_mirrored.sum() < 130


@pytest.mark.parametrize("mirror", [False, True])
def test_batches_are_mirrored_where_that_is_set(mirror):
    batches = list(normal_batches(2, 16, *RGB8.shape, seed=2))
    student = convert(small_residual(), Scheme("paper", 4, 4), RGB8.shape)
    config = replace(TOY, mirror=mirror)
    trainer = StudentTrainer(student, small_residual(), iter(batches), config, on_a_cpu())
    for images, labels in batches:
        found, own_labels = trainer.sample()
        assert torch.equal(own_labels, labels)
        assert torch.equal(found, images) is not mirror
        assert torch.equal(found.sort(-1).values, images.sort(-1).values)
