"""What the tests of a file may cost: a share of the suite, since seconds are another number on each machine."""

from collections import Counter

import pytest

SHARE = 1 / 7
"""Of the seconds of all tests that run two at a time."""
_MANY = 1000  # tests: fewer are not the suite


def file_seconds(reporter: pytest.TerminalReporter) -> dict[str, float]:
    """Seconds that the tests of each file took, with their fixtures; empty where not the whole suite was run."""
    seconds: Counter[str] = Counter()
    tests = 0
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                tests += report.when == "call"
                seconds[report.nodeid.split("::")[0]] += report.duration
    return dict(seconds) if tests > _MANY else {}


def over_budget(seconds: dict[str, float]) -> list[str]:
    """Files whose tests take more than their share."""
    return [file for file, one in seconds.items() if one > SHARE * sum(seconds.values())]


def slowest_files(seconds: dict[str, float], count: int = 10) -> list[str]:
    """A line each, and one for each file over its budget."""
    total, slowest = sum(seconds.values()), sorted(seconds, key=lambda file: -seconds[file])
    lines = [f"{seconds[file]:6.1f} s {seconds[file] / total:6.1%}  {file}" for file in slowest[:count]]
    remedy = f"more than a file's share of {SHARE:.0%}: copy a finished run, fork, or mark what is long as slow"
    return lines + [
        f"ERROR {file} takes {seconds[file] / total:.0%} of the suite, {remedy}" for file in over_budget(seconds)
    ]
