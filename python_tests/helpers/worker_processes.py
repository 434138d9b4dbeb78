"""Functions that several processes run at once, each forked from one that has imported all."""

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

HOST = "127.0.0.1"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["parallel_steps"])


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    result: Any  # of its function; None where it did not return
    printed: str
    errors: str


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind((HOST, 0))
        return opened.getsockname()[1]


def work(place: dict[str, str], folder: Path, function: Callable[..., Any], arguments: Any) -> None:
    """Be one of the processes."""
    os.environ.update(place)
    for descriptor, kind in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{place['RANK']}.{kind}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.save(function(*arguments), folder / f"{place['RANK']}.pt")


def run_together(
    count: int, folder: Path, function: Callable[..., Any], *arguments: Any, agent: bool = False
) -> list[Ended]:
    """Run a function in so many processes, which meet as those of torchrun do.

    Args:
        count: of processes.
        folder: for what they print.
        function: of a module.
        arguments: for it.
        agent: whether the store by which they meet is outside of them, as with torchrun itself.
    """
    port = free_port()
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": HOST, "MASTER_PORT": str(port)}
    if agent:
        store = TCPStore(
            HOST, port, is_master=True, wait_for_workers=False, timeout=timedelta(0, 9)
        )
        place["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        place["TORCHELASTIC_RUN_ID"] = "test"
    places = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    started = [CONTEXT.Process(target=work, args=(p, folder, function, arguments)) for p in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the process that is forked
        for process in started:
            process.start()
    for process in started:
        process.join(120)
        process.kill()  # one that hangs; others have ended
        process.join()
    if agent:
        del store
    return [ended(folder, rank, process.exitcode) for rank, process in enumerate(started)]


def ended(folder: Path, rank: int, code: int) -> Ended:
    """Collect what a process left."""
    file = folder / f"{rank}.pt"
    result = torch.load(file) if file.exists() else None
    texts = [(folder / f"{rank}.{kind}").read_text() for kind in ("out", "err")]
    return Ended(code, result, *texts)
