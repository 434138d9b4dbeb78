"""The benchmark of coverage: what it checks, and when a classifier passes."""

from benchmarks.checks.bench_coverage import CHECKS, check, passes


def test_coverage_checks_a_classifier():
    result = check("timm:test_efficientnet")
    assert {title: result[title]["passed"] for title in CHECKS} == dict.fromkeys(CHECKS, True)
    assert passes(result)
    for title in CHECKS:
        assert not passes(result | {title: {"passed": False, "detail": "reason"}})
        assert not passes({name: found for name, found in result.items() if name != title})
