"""Trainers of a small classifier, always from the same numbers, and the ops that they run."""

import torch
from networks import RGB8, small_residual
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.fine_tuning import StudentTrainer
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import GeneratorTrainer, synthetic_batches
from zscgan_ext.training.execution import choose_execution
from zscgan_ext.training.trainer import ParameterGroup, Trainer

CPU = torch.device("cpu")
SMALL = RunConfig().changed(latent_dim=8, batch_size=8, synthesis_steps=8, fine_tuning_steps=8)
STAGES = ("generator", "student-deploy", "student-paper")


def new_trainer(stage, config=SMALL, device=CPU):
    """A trainer of the small classifier, always from the same numbers."""
    torch.manual_seed(0)
    model = trace(small_residual().to(device), RGB8.shape)
    rng = torch.Generator(device).manual_seed(0)
    execution = choose_execution(config.execution, device)
    generator = ConditionalGenerator(5, config.generator.latent_dim, RGB8).to(device)
    if stage == "generator":
        teacher = FrozenTeacher(model, "gaussian_kl")
        return GeneratorTrainer(generator, teacher, config.generator, execution, rng)
    student = convert(model, Scheme(stage.removeprefix("student-"), 4, 4), RGB8.shape)
    batches = synthetic_batches(generator.eval(), config.generator.batch_size, rng)
    calibrate(student, batches, 1)
    return StudentTrainer(student, model, batches, config.fine_tuning, execution)


def take_step(trainer):
    """Take one step on the next batch; return what it measured."""
    return trainer.step(trainer.sample())


class Follower(Trainer):
    """Learns to be where its batches are: two numbers, the distance of which is the loss."""

    metrics = ("loss", "first")
    shown = ("loss",)
    rate_option = "synthesis_learning_rate"

    def __init__(self, targets, steps=8, execution=SMALL.execution):
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0]))
        self.targets = targets
        groups = [ParameterGroup([self.weight], 0.1)]
        super().__init__(groups, (0.9, 0.999), steps, choose_execution(execution, CPU))

    def sample(self):
        return (self.targets[self.steps_taken],)

    def loss(self, *batch: torch.Tensor):
        loss = (self.weight - batch[0]).square().sum()
        return loss, torch.stack([loss.detach(), self.weight[0].detach()])


def targets(count=8):
    """Batches of a `Follower`, always the same."""
    return torch.randn((count, 2), generator=torch.Generator().manual_seed(0))


class SeenOps(TorchDispatchMode):
    """Keeps the names of all ops that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.add(function.name())
        return function(*arguments, **(keywords or {}))
