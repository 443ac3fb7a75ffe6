"""Results of the dress rehearsal, as a page of the documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_HEAD = """# What it costs at full size

Made of `benchmarks/results/$result` by `python benchmarks/full_size.py --page`,
which says how it measures. Images are a stand-in with ILSVRC-2012's names, counts and layouts, and no net computes
anything: this is what all else costs, at 1/100, 1/10 and all of its 1,281,167 + 50,000 images.

Each cell has wall and processor seconds of all processes, in brackets the wall seconds after imports where they are
known, the peak of memory, and what was read by system calls (pages of mapped files are not among it). Nothing was
dropped from the page cache before. Imports are part of every step, and have rows of their own. The last column is the
exponent of processor time, or in italics of wall time where waiting dominates, from 1/10 to 1/1: 1 is proportional,
0 is constant. Of rows at 1/10 alone it is that of the number of stages or seeds, against the row of twelve stages.
"""


_GOALS = {"wall_s": "{:.1f} s", "after_imports_s": "{:.1f} s after imports", "memory_mb": "{:,.0f} MB"}


def page(labels: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]], result: str) -> str:
    """The page of some labels' results, which are in a file of that name; `groups` have steps by name."""
    scales = sorted({int(scale) for found in labels.values() for scale in found["scales"]}, reverse=True)
    lines = [_HEAD.replace("$result", result), *(f"- **{label}**: {_made(found)}" for label, found in labels.items())]
    lines += _goals(labels, groups)
    failures = []
    for group, steps in groups.items():
        rows = []
        for name, step in steps.items():
            shown = title = step["title"]
            for label, found in labels.items():
                records = [found["scales"].get(str(scale), {}).get(name) for scale in scales]
                if any(records):
                    cells = [shown, label, *map(_cell, records), _growth(found["scales"], name, step)]
                    rows.append(f"| {' | '.join(cells)} |")
                    shown = ""
                failures += [
                    f"- {title}, {label}, 1/{scale}: {record['failed']}"
                    for record, scale in zip(records, scales, strict=True)
                    if record and "failed" in record
                ]
        if rows:
            head = ["step", "", *(f"1/{scale}" for scale in scales), "growth"]
            lines += ["", f"## {group}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]
    if failures:
        lines += ["", "## Not measured", "", *failures]
    return "\n".join(lines) + "\n"


def _goals(labels: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lists the goals, and the results of the last label."""
    *_, (label, last) = labels.items()
    rows = [
        f"| {step['title']} | {_GOALS[figure].format(most)} | {_GOALS[figure].format(record[figure])} |"
        for steps in groups.values()
        for name, step in steps.items()
        if "failed" not in (found := last["scales"].get("1", {}).get(name, {"failed": ""}))
        for record in [found | found["found"]]
        for figure, most in step.get("goals", {}).items()
    ]
    return ["", "## Goals", "", f"| step | goal at 1/1 | {label} |", "|---|---|---|", *rows] if rows else []


def _made(found: Mapping[str, Any]) -> str:
    records = [record for of_scale in found["scales"].values() for record in of_scale.values()]
    machine, dates = found["machine"], sorted({record["date"] for record in records})
    commits = ", ".join(sorted({record["commit"] for record in records}))
    cores = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']:.0f} GB of memory"
    return f"commit {commits}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {cores}"


def _cell(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    if "failed" in record:
        return "failed"
    seconds = f"{_short(record['wall_s'])} / {_short(record['cpu_s'])} s"
    if (after := record["found"].get("after_imports_s")) is not None:
        seconds += f" ({_short(after)} s)"
    return f"{seconds}, {record['memory_mb']:,.0f} MB, {record['read_mb']:,.0f} MB"


def _short(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:,.0f}"


def _growth(of_scales: Mapping[str, Any], name: str, step: Mapping[str, Any]) -> str:
    """The exponent with which a step grows: with the images, or with what it has more of than another step."""
    larger, smaller, times = of_scales.get("1", {}).get(name), of_scales.get("10", {}).get(name), 10.0
    if "against" in step:
        larger, smaller, times = smaller, of_scales.get("10", {}).get(step["against"]), step["times"]
    if not (larger and smaller) or "failed" in larger or "failed" in smaller:
        return ""
    waits = larger["cpu_s"] < larger["wall_s"] / 2
    key = "wall_s" if waits else "cpu_s"
    exponent = f"{math.log(larger[key] / smaller[key], times):.2f}"
    return f"*{exponent}*" if waits else exponent
