"""What all tests share, and what may be skipped.

Tests marked `cuda` need a GPU. With `ZSCGAN_EXT_EMULATE_CUDA=1` the kernels run on the CPU in its
place, for all but those marked `cuda(emulated=False)`, which need torch's own CUDA. Those that use
`browser` need chromium, those that use `openvino_classifier` OpenVINO, and continuous integration
has both: there, nothing but tests without a GPU, real or emulated, may be skipped.
"""

import importlib.util
import os
import sys
from pathlib import Path

import browser as headless_browser
import pytest
import torch
from openvino_runtime import OpenvinoClassifier
from tensors import NO_GPU

from zscgan_ext.ops import implementation as choice

# For the modules of benchmarks/. Last, so that the package is the installed one where there is one.
sys.path.append(str(Path(__file__).parents[1]))

NO_EMULATION = "no emulated GPU: ZSCGAN_EXT_EMULATE_CUDA is not 1"
NO_BROWSER = "no browser: install Debian's package chromium"
NO_OPENVINO = "no OpenVINO: pip install openvino"
OPTIONAL = () if os.environ.get("CI") else (NO_BROWSER, NO_OPENVINO)


def pytest_runtest_setup(item):
    if item.get_closest_marker("emulation") and choice.EMULATED is None:
        pytest.skip(NO_EMULATION)
    marker = item.get_closest_marker("cuda")
    if marker is None:
        return
    is_emulated = choice.EMULATED is not None and marker.kwargs.get("emulated", True)
    if not is_emulated and (choice.EMULATED is not None or not torch.cuda.is_available()):
        pytest.skip(NO_GPU)


def skipped_reports(config):
    """Return the reports of skipped tests: those that may be, and all others."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    # A worker of pytest-xdist has none: the process that started it looks at its reports.
    reports = reporter.stats.get("skipped", []) if reporter else []
    reasons = (NO_GPU, NO_EMULATION, *OPTIONAL)
    allowed = [r for r in reports if any(reason in str(r.longrepr) for reason in reasons)]
    return allowed, [report for report in reports if report not in allowed]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    _, others = skipped_reports(session.config)
    if others and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    allowed, others = skipped_reports(terminalreporter.config)
    for reason in (NO_GPU, NO_EMULATION, *OPTIONAL):
        count = sum(reason in str(report.longrepr) for report in allowed)
        if count:
            terminalreporter.write_line(f"{count} tests were skipped, {reason}")
    for report in others:
        terminalreporter.write_line(f"{report.nodeid} was skipped, which only GPU tests may be")


@pytest.fixture
def browser():
    """Return the path of a headless browser."""
    path = headless_browser.find_browser()
    if path is None:
        pytest.skip(NO_BROWSER)
    return path


@pytest.fixture
def openvino_classifier():
    """Return the class that runs ONNX models in OpenVINO."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip(NO_OPENVINO)
    return OpenvinoClassifier


@pytest.fixture(params=["native", "reference"] if choice.EMULATED is None else ["native"])
def implementation(request, monkeypatch):
    """Run the test once on the native core and once on plain torch."""
    monkeypatch.setattr(choice, "REQUESTED", request.param)
    return request.param
