"""What the environment says of this process: torchrun tells each its place by variables."""

import os
import re

from zscgan_ext.errors import InputError

START = "start all of them by torchrun, or unset RANK and WORLD_SIZE for one process"


def is_distributed() -> bool:
    """Return True if the environment says that this process is one of many, as torchrun lets it."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_started_by_torchrun() -> bool:
    """Return True if torchrun itself started this process, which starts all others too."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def number(variable: str, default: int = 0) -> int:
    """Return a number that torchrun sets in the environment.

    Raises:
        InputError: if it is none, or below 0.
    """
    text = os.environ.get(variable, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise InputError(f"{variable}: {text!r} in the environment, expected a number; {START}")
    return int(text)


def check_environment() -> None:
    """Require that the environment gives this process a place among others, or none.

    Raises:
        InputError: naming what is wrong with it.
    """
    if not is_distributed():
        return
    place, size = number("RANK"), number("WORLD_SIZE")
    number("LOCAL_RANK")
    number("TORCHELASTIC_RESTART_COUNT")
    if place >= size:
        raise InputError(
            f"RANK: {place} in the environment, where WORLD_SIZE is {size}; expected a number "
            f"below it; {START}"
        )
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(variable):
            raise InputError(f"RANK is set as by torchrun, but {variable} is not; {START}")
    if not 0 < number("MASTER_PORT") < 1 << 16:
        raise InputError(f"MASTER_PORT: {number('MASTER_PORT')} in the environment; {START}")


def restarts() -> int:
    """Return how often torchrun started all processes again, after one of them had died."""
    return number("TORCHELASTIC_RESTART_COUNT") if is_distributed() else 0


def is_first() -> bool:
    """Return True if this process is the one that prints and writes, before it met the others."""
    return not is_distributed() or number("RANK") == 0


def message_prefix() -> str:
    """Return what messages of this process begin with, nothing for those of the first."""
    try:
        return "" if is_first() else f"process {number('RANK')}: "
    except InputError:  # which is what the message says
        return ""


def local_rank() -> int:
    """Return the place of this process among those of its machine, which chooses its GPU."""
    return number("LOCAL_RANK") if is_distributed() else 0
