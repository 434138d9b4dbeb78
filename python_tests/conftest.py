"""What all tests share: those marked `cuda` need a GPU, and nothing else may be skipped."""

import pytest
import torch

from zscgan_ext.ops import implementation as choice

NO_GPU = "no GPU"


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip(NO_GPU)


def skipped_reports(config):
    """Return the reports of skipped tests: those without a GPU, and all others."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    # A worker of pytest-xdist has none: the process that started it looks at its reports.
    reports = reporter.stats.get("skipped", []) if reporter else []
    without_gpu = [report for report in reports if NO_GPU in str(report.longrepr)]
    return without_gpu, [report for report in reports if report not in without_gpu]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    _, others = skipped_reports(session.config)
    if others and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    without_gpu, others = skipped_reports(terminalreporter.config)
    if without_gpu:
        count = len(without_gpu)
        terminalreporter.write_line(f"{count} GPU tests were skipped because there is no GPU")
    for report in others:
        terminalreporter.write_line(f"{report.nodeid} was skipped, which only GPU tests may be")


@pytest.fixture(params=["native", "reference"])
def implementation(request, monkeypatch):
    """Run the test once on the native core and once on plain torch."""
    monkeypatch.setattr(choice, "REQUESTED", request.param)
    return request.param
