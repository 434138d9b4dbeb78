"""The checkpoint that a run goes on from: the newest one of a run's folder that is whole."""

import sys
from pathlib import Path
from typing import Any

from zscgan_ext import processes
from zscgan_ext.errors import InputError, one_line
from zscgan_ext.run_folder.checkpoint_file import (
    DamagedCheckpointError,
    State,
    checkpoint_files,
    read_checkpoint,
)
from zscgan_ext.run_folder.files import CHECKPOINTS

RANDOM = ("default_random", "random")
KINDS = {"facts": dict, "finished": list, "steps": int, "held": dict, "random_of_all": list}


def newest_checkpoint(run: Path) -> State | None:
    """Read the newest whole checkpoint of a run; one line tells of each that is damaged.

    Returns:
        What it holds, or None for a run that was stopped before its first one.

    Raises:
        InputError: if there are checkpoints, and all are damaged.
    """
    files = checkpoint_files(run / CHECKPOINTS)
    for file in reversed(files):
        try:
            return state_of_a_run(read_checkpoint(file))
        except DamagedCheckpointError as error:
            what_now = "" if file == files[0] else "; the one before it is used"
            if processes.rank() == 0:
                told = one_line(f"checkpoint: {file} {error}{what_now}")
                print(told, file=sys.stderr, flush=True)
    if files:
        raise InputError(f"resume: {run} holds no whole checkpoint, needed is one")
    return None


def state_of_a_run(content: Any) -> State:
    """Return what a checkpoint holds, which has to be what `Checkpoints.write` has written.

    Raises:
        DamagedCheckpointError: if it is something else.
    """
    state: State = content if isinstance(content, dict) else {}
    for name, kind in KINDS.items():
        if not isinstance(state.get(name), kind):
            raise DamagedCheckpointError(f"is no checkpoint of a run ({name} is missing)")
    randoms = [
        own[name] if isinstance(own, dict) and name in own else None
        for own in state["random_of_all"]
        for name in RANDOM
    ]
    texts = [*state["facts"].values(), *state["finished"]]
    if not (randoms and all(isinstance(random, dict) for random in randoms)):
        raise DamagedCheckpointError("is no checkpoint of a run (random_of_all is something else)")
    if not all(isinstance(text, str) for text in texts):
        raise DamagedCheckpointError("is no checkpoint of a run (facts are something else)")
    return state
