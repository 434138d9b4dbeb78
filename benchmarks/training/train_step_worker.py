"""A process of `bench_train_step`: takes the steps of one subject when it is told to.

It is given a subject as JSON. It says `ready` after warming up, answers a number of steps on its
standard input with their mean milliseconds, and gives its peak memory in bytes when the input ends.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.training.training_subjects import Subject, new_step

WARM_UP_STEPS = {"cpu": 2, "cuda": 8}


def seconds_of(step: Callable[[], Tensor], count: int, device: str) -> float:
    """Take some steps; return the mean time of one."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def peak_memory(device: str) -> int:
    """Return the most memory the process (or, on a GPU, torch) held at a time, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Serve until the standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what the trainer prints is no answer
    subject = Subject(**json.loads(sys.argv[1]))
    step = new_step(subject)
    for _ in range(WARM_UP_STEPS[subject.device]):
        values = step().tolist()
    losses = values if isinstance(values, list) else [values]
    if not all(map(math.isfinite, losses)):
        sys.exit(f"{subject}: the losses are {losses}")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(1e3 * seconds_of(step, int(line), subject.device), file=answers, flush=True)
    print(peak_memory(subject.device), file=answers, flush=True)


if __name__ == "__main__":
    main()
