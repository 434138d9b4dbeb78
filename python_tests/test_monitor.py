"""How a stage is shown: a bar on a terminal, lines elsewhere."""

import sys
import time

import pytest

from zscgan_ext.stages.monitor import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    seconds = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


@pytest.mark.parametrize(
    ("steps", "interval", "due"),
    [(10, 4, {1, 4, 8, 10}), (3, 50, {1, 3}), (4, 2, {1, 2, 4}), (1, 1, {1})],
)
def test_first_last_and_every_interval_are_logged(steps, interval, due):
    progress = Progress("synthesis", steps, interval)
    assert {step for step in range(1, steps + 1) if progress.is_due(step)} == due


def test_lines_give_values_rate_and_remaining_time(capsys, clock):
    with Progress("synthesis", 10, 4) as progress:
        for step in range(1, 11):
            clock[0] += 0.5
            progress.update(step, {"loss": 1 / step, "teacher accuracy": 12.345678})
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        "synthesis 1/10  loss 1  teacher accuracy 12.35  2.0 steps/s  4 s left",
        "synthesis 4/10  loss 0.25  teacher accuracy 12.35  2.0 steps/s  3 s left",
        "synthesis 8/10  loss 0.125  teacher accuracy 12.35  2.0 steps/s  1 s left",
        "synthesis 10/10  loss 0.1  teacher accuracy 12.35  2.0 steps/s  0 s left",
    ]
    assert output.err == ""


def test_a_terminal_gets_a_bar_and_no_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("fine-tuning", 3, 1) as progress:
        for step in (1, 2, 3):
            progress.update(step, {"loss": 0.5})
    output = capsys.readouterr()
    assert output.out == ""
    last = output.err.rstrip().split("\r")[-1]
    assert last.startswith("fine-tuning: 100%")
    assert "3/3" in last
    assert "loss=0.5" in last


def test_a_bar_asks_for_values_now_and_then(monkeypatch, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    wanted = []
    with Progress("synthesis", 1000, 1000) as progress:
        for step in range(1, 101):
            clock[0] += 0.01
            if progress.wants(step):
                wanted.append(step)
                progress.update(step, {"loss": 0.5})
                assert progress.bar.n == step
    assert wanted[0] == 1
    assert 4 <= len(wanted) <= 6


def test_without_a_bar_only_the_log_asks_for_values(clock):
    progress = Progress("synthesis", 100, 40)
    for step in range(1, 101):
        clock[0] += 1
        assert progress.wants(step) == progress.is_due(step)


def test_the_bar_is_closed_when_a_stage_fails(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress("synthesis", 3, 1)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert progress.bar.disable  # tqdm's sign of a closed bar
