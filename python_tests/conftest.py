"""What all tests share: those marked `cuda` need a GPU; the summary counts those without one."""

import pytest
import torch

from zscgan_ext.ops import implementation as choice

NO_GPU = "no GPU"


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip(NO_GPU)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NO_GPU in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} GPU tests were skipped because there is no GPU")


@pytest.fixture(params=["native", "reference"])
def implementation(request, monkeypatch):
    """Run the test once on the native core and once on plain torch."""
    monkeypatch.setattr(choice, "REQUESTED", request.param)
    return request.param
