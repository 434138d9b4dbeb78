"""What several processes do together: steps on a batch that they share, and whole runs."""

import errno
import os
import shutil
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from networks import RGB8, normal_batches, small_residual
from runs import OWN, TINY

from zscgan_ext import distributed
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.config.configs import ExecutionConfig, FineTuningConfig, GeneratorConfig
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.fine_tuning import StudentTrainer
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.run_folder.files import RunFolder
from zscgan_ext.run_folder.whole_file import one_line_errors
from zscgan_ext.synthesis import generator as generator_module
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import GeneratorTrainer
from zscgan_ext.train import main
from zscgan_ext.training.execution import choose_execution

BATCH = 12
GENERATOR = GeneratorConfig(latent_dim=8, batch_size=BATCH, steps=8)
FINE_TUNING = FineTuningConfig(steps=8, label_weight=0.5)
EXECUTION = choose_execution(ExecutionConfig(), torch.device("cpu"))
STUDENTS = [("deploy", 1.0), ("deploy", 0.0), ("paper", 0.0)]  # scheme, feature_weight


def own(x: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a batch."""
    part = distributed.shard_range(len(x))
    return x[part.start : part.stop]


def learned(trainer, batch) -> dict[str, torch.Tensor]:
    """Return loss and gradients of one step."""
    loss, _ = trainer.loss(*batch)
    loss.backward()
    distributed.average_gradients(trainer.parameters())
    found = {"loss": distributed.all_reduce_mean(loss.detach())}
    for model, module in trainer.models().items():
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[f"gradient of {model}.{name}"] = parameter.grad.clone()
    return found


def generator_step(distance: str) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics of the generator."""
    torch.manual_seed(0)
    generator = ConditionalGenerator(5, 8, RGB8)
    config = replace(GENERATOR, distance=distance)
    teacher = FrozenTeacher(trace(small_residual(), RGB8.shape), distance)
    trainer = GeneratorTrainer(generator, teacher, config, EXECUTION, torch.Generator())
    random = torch.Generator().manual_seed(1)
    latent, labels = generator.random_inputs(BATCH, random)
    # Noise depends on the place of an image among its process's own.
    noise, generator_module.NOISE = generator_module.NOISE, 0.0
    try:
        found = learned(trainer, (own(latent), own(labels)))
    finally:
        generator_module.NOISE = noise
    buffers = {name: b.clone().double() for name, b in generator.named_buffers()}
    return found | buffers


def student_step(scheme: str, feature_weight: float) -> dict[str, torch.Tensor]:
    """Ranges, loss and gradients of the student."""
    model = small_residual()
    student = convert(model, Scheme(scheme, 4, 4), RGB8.shape)
    batches = [(own(x), own(y)) for x, y in normal_batches(3, BATCH, *RGB8.shape)]
    calibrate(student, islice(batches, 2), 2)
    ranges = {f"range {name}": v.detach().clone() for name, v in student.state_dict().items()}
    config = replace(FINE_TUNING, feature_weight=feature_weight)
    trainer = StudentTrainer(student, model, iter([]), config, EXECUTION)
    return ranges | learned(trainer, batches[2])


def steps() -> dict[str, dict[str, torch.Tensor]]:
    """Everything that has to be the same for any number of processes."""
    found = {f"generator {d}": generator_step(d) for d in ("gaussian_kl", "l2")}
    return found | {f"student {s} {w}": student_step(s, w) for s, w in STUDENTS}


def steps_and_runs(folder: Path, data: str) -> dict[str, dict]:
    """Return what steps gave, and how the program ended that was run several times."""
    distributed.join(torch.device("cpu"))
    return {"steps": steps(), "codes": runs(folder, data)}


def runs(folder: Path, data: str) -> dict[str, int]:
    """Run the program: undisturbed; stopped by a signal to one process, and then to the end."""
    arguments = [*TINY, "--batch-size=12", f"--evaluation-data={data}"]
    codes = {"undisturbed": main([*arguments, f"--output={folder / 'undisturbed'}"])}
    count_step = Checkpoints.count_step

    def stopped(self):
        count_step(self)
        if self.steps == 8 and distributed.rank() == distributed.world_size() - 1:
            signal.raise_signal(signal.SIGTERM)

    Checkpoints.count_step = stopped
    next_meeting()
    codes["stopped"] = main([*arguments, f"--output={folder / 'stopped'}"])
    Checkpoints.count_step = count_step
    if distributed.is_first():
        shutil.copytree(folder / "stopped", folder / "for one process")
    next_meeting()
    codes["resumed"] = main([OWN, f"--resume={folder / 'stopped'}"])
    return codes


def next_meeting() -> None:
    """Let processes that parted meet again, at another port."""
    distributed.leave()
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    distributed.join(torch.device("cpu"))


# ---- processes that fail -------------------------------------------------------------------------


def run_with(arguments: list[str], of_rank: dict[int, list[str]]) -> int:
    """Run the program, in some processes with more arguments."""
    return main([*arguments, *of_rank.get(int(os.environ["RANK"]), [])])


def run_on_a_full_disk(arguments: list[str]) -> int:
    """Run the program; the first process, which alone writes, finds no room for its log."""

    def append(self, name, data):
        if self.writes:
            with one_line_errors(self.path / name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    RunFolder.append = append
    return main(arguments)


def run_and_die(arguments: list[str]) -> int:
    """Run the program; the second process dies after a step."""
    count_step = Checkpoints.count_step

    def dying(self):
        count_step(self)
        if self.steps == 5 and distributed.rank() == 1:
            os._exit(9)

    Checkpoints.count_step = dying
    return main(arguments)
