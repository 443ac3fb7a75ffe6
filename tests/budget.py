"""Time budget of a test file: a fraction of the suite, because seconds differ between machines."""

from collections import Counter

import pytest

FRACTION = 1 / 7
"""Largest fraction of the suite's seconds, added over its workers."""
LONGEST_FIRST = (
    "pipeline/test_pipeline.py",
    "training/test_training_interruption.py",
    "models/test_models_onnx.py",
    "test_api.py",
    "training/test_training_exactness.py",
    "test_errors.py",
    "pipeline/test_pipeline_transfer.py",
    "training/test_training_boxes.py",
    "evaluation/test_evaluation_commands.py",
    "test_docs.py",
    "training/test_training_exchange.py",
    "pipeline/test_pipeline_boxes.py",
    "test_packaging.py",
)
"""Files that start first, so that no worker is left with a long one at the end."""
_SUITE = 1000  # tests; a run of fewer is a part of the suite


def file_seconds(reporter: pytest.TerminalReporter) -> dict[str, float]:
    """Seconds of each file's tests and fixtures; empty unless the full suite was run."""
    seconds: Counter[str] = Counter()
    tests = 0
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                tests += report.when == "call"
                seconds[report.nodeid.split("::")[0]] += report.duration
    return dict(seconds) if tests > _SUITE else {}


def start_rank(file: str) -> int:
    """Position of a file in the order of starts; equal for all files that are not among the longest."""
    return next((rank for rank, name in enumerate(LONGEST_FIRST) if file.endswith(f"tests/{name}")), len(LONGEST_FIRST))


def over_budget(seconds: dict[str, float]) -> list[str]:
    """Files whose tests take more than their fraction."""
    limit = FRACTION * sum(seconds.values())
    return [file for file, taken in seconds.items() if taken > limit]


def slowest_files(seconds: dict[str, float], count: int = 10) -> list[str]:
    """Lines of the summary: the slowest files, then each file over its budget."""
    total, slowest = sum(seconds.values()), sorted(seconds, key=lambda file: -seconds[file])
    lines = [f"{seconds[file]:6.1f} s {seconds[file] / total:6.1%}  {file}" for file in slowest[:count]]
    remedy = f"more than the {FRACTION:.0%} of a file: copy a finished run, fork, or mark the longest tests as slow"
    return lines + [
        f"ERROR {file} takes {seconds[file] / total:.0%} of the suite, {remedy}" for file in over_budget(seconds)
    ]
