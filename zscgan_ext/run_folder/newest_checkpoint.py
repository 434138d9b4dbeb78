"""The checkpoint that a run goes on from: the newest one of a run's folder that is whole."""

import sys
from pathlib import Path
from typing import Any

from zscgan_ext import processes
from zscgan_ext.errors import InputError, one_line
from zscgan_ext.json_values import (
    MismatchError,
    anything,
    integer,
    list_of,
    mapping_of,
    record,
    text,
)
from zscgan_ext.run_folder.checkpoint_file import (
    DamagedCheckpointError,
    State,
    checkpoint_files,
    read_checkpoint,
)
from zscgan_ext.run_folder.files import CHECKPOINTS

RANDOM = record({"default_random": mapping_of(anything), "random": mapping_of(anything)})
STATE = record(
    {
        "facts": mapping_of(text()),
        "finished": list_of(text()),
        "steps": integer(0),
        "held": mapping_of(mapping_of(anything)),
        "random_of_all": list_of(RANDOM),
    }
)


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
    try:
        state: State = STATE(content)
    except MismatchError as error:
        raise DamagedCheckpointError(f"is no checkpoint of a run ({error})") from None
    if not state["random_of_all"]:
        raise DamagedCheckpointError("is no checkpoint of a run (random_of_all is empty)")
    return state
