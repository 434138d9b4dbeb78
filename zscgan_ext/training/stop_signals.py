"""Signals that stop a run: the first asks it to stop where nothing is lost, a second ends it.

They are SIGTERM, Ctrl-C, and SIGHUP, which a terminal sends that is closed.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)  # which Windows lacks
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if HANGUP is None else [HANGUP]))


class StoppedError(BaseException):
    """A signal stopped the run; no `except Exception` keeps it going."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class StopSignals:
    """Listens for signals while it is entered, as a context manager.

    Only the main thread of a program can listen; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0  # the first signal's number
        self.interrupts = False
        self.handlers_before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                # A program in the background of a shell has to go on ignoring Ctrl-C, and one
                # under nohup the end of its terminal.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.handlers_before[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)
        self.handlers_before = {}

    def receive(self, number: int, _: FrameType | None) -> None:
        """Remember the first signal, and raise it where that does no harm; exit at a second.

        A terminal that is closed may send its signal twice, by the shell and by the system.
        """
        if self.received and number == HANGUP:
            return
        if self.received:
            os._exit(128 + number)
        self.received = number
        if self.interrupts:
            raise StoppedError(number)

    def check(self) -> None:
        """Raise `StoppedError` if a signal was received."""
        if self.received:
            raise StoppedError(self.received)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal interrupt what this encloses at any point."""
        self.interrupts = True
        try:
            self.check()
            yield
        finally:
            self.interrupts = False
