"""Learning the generator, and the batches it gives afterwards."""

import math
import statistics
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from networks import RGB8, small_residual

from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.config.configs import ExecutionConfig, GeneratorConfig
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import (
    GeneratorTrainer,
    log_pair_distance,
    noise_batches,
    paired,
    synthetic_batches,
)
from zscgan_ext.training.execution import choose_execution

QUICK = GeneratorConfig(latent_dim=8, batch_size=32, steps=25, learning_rate=3e-3)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def learned(config=QUICK, seed=0, **execution):
    """A generator learned from the small classifier, and what its steps measured."""
    torch.manual_seed(seed)
    generator = ConditionalGenerator(5, config.latent_dim, RGB8)
    steps = continued(generator, config, seed, **execution)
    return generator.eval(), steps


def continued(generator, config, seed, **execution):
    """What the steps measure by which a generator learns on."""
    teacher = FrozenTeacher(trace(small_residual(), RGB8.shape), config.distance)
    chosen = choose_execution(ExecutionConfig(**execution), torch.device("cpu"))
    trainer = GeneratorTrainer(generator, teacher, config, chosen, random(seed))
    measured = [trainer.step(trainer.sample()).tolist() for _ in range(config.steps)]
    names = trainer.metrics
    return [SimpleNamespace(**dict(zip(names, m, strict=True))) for m in measured]


def test_the_loss_falls_and_the_classifier_agrees_more():
    _, steps = learned()
    assert len(steps) == 25
    assert sum(s.loss for s in steps[-5:]) < 0.8 * sum(s.loss for s in steps[:5])
    accuracies = [step.teacher_accuracy for step in steps]
    assert all(0 <= accuracy <= 100 for accuracy in accuracies)
    assert sum(accuracies[-5:]) > sum(accuracies[:5])


def test_the_loss_is_the_weighted_sum_of_its_parts():
    weights = {"cross_entropy_weight": 0.5, "batch_norm_weight": 3.0, "diversity_weight": 0.7}
    for step in learned(replace(QUICK, steps=2, **weights))[1]:
        difference = math.log(step.pair_distance)
        expected = 0.5 * step.cross_entropy + 3 * step.batch_norm_distance - 0.7 * difference
        assert step.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([3, 1, 4, 2], [3, 3, 4, 4]), ([3, 1, 4, 2, 0], [3, 3, 4, 4, 0]), ([3], [3]), ([], [])],
)
def test_labels_come_in_pairs(labels, expected):
    assert paired(torch.tensor(labels, dtype=torch.int64)).tolist() == expected


def test_the_distance_of_pairs_in_closed_form():
    # Pairs (0, 3) and (2, 7) lie 9 and 25 apart, squared; the variance of the four is 6.5.
    features = torch.tensor([[0.0, 0.0], [3.0, 0.0], [2.0, 0.0], [7.0, 0.0]])
    expected = (math.log(9 / 6.5 + 1e-4) + math.log(25 / 6.5 + 1e-4)) / 2
    assert log_pair_distance(features).item() == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_pairs_does_not_depend_on_the_unit_and_drives_pairs_apart():
    features = torch.randn(6, 5, generator=random())
    assert log_pair_distance(1000 * features).item() == pytest.approx(
        log_pair_distance(features).item(), rel=1e-5
    )
    features.requires_grad_()
    log_pair_distance(features).backward()
    assert (features.grad[::2] == -features.grad[1::2]).all()  # each of a pair flees the other
    apart = features.detach() + 0.01 * features.grad
    assert log_pair_distance(apart) > log_pair_distance(features)


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_equal_images_and_too_few_have_finite_gradients(count):
    features = torch.ones(count, 3, requires_grad=True)
    value = log_pair_distance(features)
    assert value.item() == pytest.approx(math.log(1e-4) if count > 1 else 0)
    if count > 1:
        value.backward()
        assert features.grad.isfinite().all()


def pair_distance(steps):
    """The mean logarithm of the pairs' distance; single batches are noisy."""
    return statistics.mean(math.log(step.pair_distance) for step in steps)


def test_images_of_a_class_learn_to_differ():
    others = {"cross_entropy_weight": 0.0, "batch_norm_weight": 0.0}
    gains, recoveries = [], []
    for seed in range(3):
        (alike, tiny), (_, large) = (
            learned(replace(QUICK, steps=40, diversity_weight=weight), seed)
            for weight in (1e-6, 3.0)
        )
        assert large[0].pair_distance == pytest.approx(tiny[0].pair_distance)
        gains.append(pair_distance(large[-5:]) - pair_distance(tiny[-5:]))
        # Nothing but the distance drives images apart that came out alike.
        again = continued(alike, replace(QUICK, diversity_weight=1.0, **others), seed)
        recoveries.append(pair_distance(again[-5:]) - pair_distance(again[:1]))
    assert min(gains) > math.log(2)
    assert statistics.mean(gains) > math.log(5)
    assert min(recoveries) > math.log(1.1)
    assert statistics.mean(recoveries) > math.log(3)


def test_each_part_can_be_learned_alone():
    for weight, measure in (
        ("cross_entropy_weight", "batch_norm_distance"),
        ("batch_norm_weight", "cross_entropy"),
    ):
        _, both = learned(QUICK)
        _, alone = learned(replace(QUICK, **{weight: 0.0}))
        other = {"batch_norm_distance": "cross_entropy", "cross_entropy": "batch_norm_distance"}
        assert getattr(alone[-1], measure) < getattr(alone[0], measure)
        assert getattr(alone[-1], other[measure]) > getattr(both[-1], other[measure])


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    config = replace(QUICK, steps=4)
    (one, steps), (two, again), (other, _) = (learned(config, seed) for seed in (3, 3, 4))
    assert steps == again
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.linear.weight, other.linear.weight)
    pairs = zip(first_batches(one), first_batches(two), strict=True)
    for (images, labels), (same_images, same_labels) in pairs:
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def first_batches(generator, count=2, size=6):
    """The first synthetic batches, always with the same random numbers."""
    torch.manual_seed(5)
    return list(islice(synthetic_batches(generator, size, random(1)), count))


def test_bfloat16_learns_too():
    _, steps = learned(precision="bfloat16")
    assert steps[-1].loss < steps[0].loss


def test_synthetic_batches_are_images_with_their_labels():
    generator, _ = learned(replace(QUICK, steps=1))
    (images, labels), (more, _) = first_batches(generator)
    assert images.shape == (6, *RGB8.shape)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.requires_grad
    assert labels.shape == (6,)
    assert not torch.equal(images, more)
    latent, expected_labels = generator.random_inputs(6, random(1))
    assert torch.equal(labels, expected_labels)
    torch.manual_seed(5)
    torch.testing.assert_close(images, generator(latent, expected_labels).detach())


def test_noise_is_standard_normal():
    (images, labels), (more, _) = islice(noise_batches(64, RGB8.shape, random()), 2)
    assert images.shape == (64, *RGB8.shape)
    assert labels.shape == (64,)
    assert images.mean().abs() < 0.05
    assert images.std().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(images, more)
