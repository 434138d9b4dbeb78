"""The benchmark of coverage: what it checks, and what its committed file shows."""

import json

from benchmark_scripts import BENCHMARKS

from benchmarks.checks.bench_coverage import CHECKS, check, passes
from benchmarks.checks.coverage_models import LARGE, all_names


def test_coverage_checks_a_classifier():
    result = check("timm:test_efficientnet")
    assert {title: result[title]["passed"] for title in CHECKS} == dict.fromkeys(CHECKS, True)
    assert passes(result)


def test_committed_coverage_reaches_the_bar():
    results = json.loads((BENCHMARKS / "results" / "coverage.json").read_text())["results"]
    assert set(all_names()) - set(LARGE) <= set(results)
    failing = [name for name, result in results.items() if not passes(result)]
    assert not [name for name in failing if name.startswith("torchvision:")]
    timm = [name for name in results if name.startswith("timm:")]
    assert len(timm) >= 60
    assert len(failing) <= 0.05 * len(timm)
