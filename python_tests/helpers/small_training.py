"""Trainings of a small classifier, always from the same numbers, and the ops that they run."""

import torch
from networks import RGB8, small_residual
from torch.utils._python_dispatch import TorchDispatchMode
from zscgan_ext.settings.config import Settings

from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.fine_tuning import StudentTraining
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import GeneratorTraining, synthetic_batches

CPU = torch.device("cpu")
SMALL = Settings(latent_dim=8, batch_size=8, synthesis_steps=8, fine_tuning_steps=8)
STAGES = ("generator", "student-deploy", "student-paper")


def new_training(stage, settings=SMALL, device=CPU):
    """A training of the small classifier, always from the same numbers."""
    torch.manual_seed(0)
    model = trace(small_residual().to(device), RGB8.shape)
    random = torch.Generator(device).manual_seed(0)
    generator = ConditionalGenerator(5, settings.latent_dim, RGB8).to(device)
    if stage == "generator":
        return GeneratorTraining(generator, FrozenTeacher(model, "gaussian_kl"), settings, random)
    student = convert(model, Scheme(stage.removeprefix("student-"), 4, 4), RGB8.shape)
    batches = synthetic_batches(generator.eval(), settings.batch_size, random)
    calibrate(student, batches, 1)
    return StudentTraining(student, model, batches, settings)


class SeenOps(TorchDispatchMode):
    """Keeps the names of all ops that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.add(function.name())
        return function(*arguments, **(keywords or {}))
