"""GDFQ's settings, as the benchmark of accuracy takes them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from runs import write_fashion_mnist

from benchmarks.accuracy.accuracy_rows import prepare_run
from benchmarks.baselines import gdfq
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING


def test_the_generator_multiplies_the_embedding_and_normalizes_images():
    torch.manual_seed(0)
    generator = gdfq.GdfqGenerator(10, FASHION_MNIST_PREPROCESSING).train()
    latent, labels = torch.randn(16, gdfq.LATENT_DIM), torch.randint(10, (16,))
    images = generator(latent, labels)
    assert images.shape == (16, 1, 28, 28)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.var(correction=0).item() == pytest.approx(1, abs=1e-2)
    generator.embedding.weight.data[3] = 0
    alike = generator.eval()(latent, torch.full((16,), 3))
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))


def test_the_student_loss_averages_over_classes():
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(6, 10), torch.randn(6, 10), torch.randint(10, (6,))
    p, q = (torch.softmax(x.double() / gdfq.TEMPERATURE, 1) for x in (teacher, logits))
    divergence = (p * (p / q).log()).sum() / 60
    wanted = F.cross_entropy(logits.double(), labels) + gdfq.TEMPERATURE**2 * divergence
    torch.testing.assert_close(gdfq.student_loss(logits, teacher, labels), wanted.float())


@pytest.fixture
def run(tmp_path):
    data = write_fashion_mnist(tmp_path / "images", count=8)
    write_fashion_mnist(data, "train", count=8)
    small_gray = {
        **{"classifier": "networks:small_gray", "num_classes": 10, "image_size": 28},
        **{"mean": (0.5,), "std": (0.25,)},
    }
    sizes = {"scheme": "paper", "batch_size": 8, "fine_tuning_batch_size": 4, "device": "cpu"}
    steps = {"synthesis_steps": 2, "fine_tuning_steps": 6}
    config = RunConfig().changed(output=tmp_path / "run", **small_gray, **sizes, **steps)
    torch.manual_seed(0)
    return prepare_run(config, str(data), held_out=False)


def test_the_warm_up_is_read_where_it_was_written(run, tmp_path):
    file = tmp_path / "warm.safetensors"
    learned = gdfq.warmed_up_generator(run, file)
    torch.manual_seed(1)  # another generator to begin with
    read = gdfq.warmed_up_generator(run, file)
    for name, value in learned.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name


def test_the_schedule(run, tmp_path, monkeypatch):
    seen, steps = [], []
    learn = gdfq.learn

    def learn_and_look(loss, optimizer):
        before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
        learn(loss, optimizer)
        after = optimizer.param_groups[0]["params"]
        assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
        steps.append((type(optimizer).__name__, optimizer.param_groups[0]["lr"]))

    def observe(self, batches):
        batches = list(batches)
        seen.extend((len(images), len(steps)) for images in batches)
        observe_batches(self, batches)

    observe_batches = gdfq.GdfqStudentTraining.observe
    monkeypatch.setattr(gdfq, "learn", learn_and_look)
    monkeypatch.setattr(gdfq.GdfqStudentTraining, "observe", observe)
    warm = gdfq.warmed_up_generator(run, tmp_path / "warm.safetensors")
    kept = copy.deepcopy(warm.state_dict())
    gdfq.quantize_as_gdfq(run, warm)
    names = [name for name, _ in steps]
    assert names == ["Adam"] * 2 + ["Adam", "SGD"] * 6
    assert seen == [(8, 2)] * gdfq.OBSERVED  # between the warm-up and the first turn
    rates = {name: [rate for n, rate in steps if n == name] for name in ("Adam", "SGD")}
    assert rates["Adam"] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])
    assert rates["SGD"] == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6, 1e-7, 1e-7])
    for name, value in warm.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_ranges_are_a_moving_average(run):
    student = run.new_student()
    training = gdfq.GdfqStudentTraining(student, 8)
    quantizer = student.activation_quantizers[0]
    training.observe([torch.zeros(4, 1, 28, 28)] * 30)
    nothing = quantizer.running_max.item()
    bright = torch.full((4, 1, 28, 28), 2.0)
    training.observe([bright])
    once = quantizer.running_max.item()
    training.observe([bright] * 200)
    assert once - nothing == pytest.approx((quantizer.running_max.item() - nothing) / 10, rel=1e-3)
