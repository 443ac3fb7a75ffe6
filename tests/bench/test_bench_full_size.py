"""`benchmarks/full_size.py`: its plan, and some steps with very few images."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_bench_gpu_script import load
from tiny import REPOSITORY

from vggrepro.paper import value
from vggrepro.preflight.machine import RESULT_S, START_S

full_size = load("full_size")
REHEARSAL = REPOSITORY / "benchmarks" / "rehearsal"
SCALE = 10_000
NOWHERE = full_size.Place(Path("nowhere"), "now", SCALE)


def functions(name: str) -> set[str]:
    tree = ast.parse((REHEARSAL / f"{name}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def rehearse(*words: str) -> None:
    """Runs the rehearsal from a small process: the peak memory of a process begins with that of its parent."""
    subprocess.run([sys.executable, "benchmarks/full_size.py", *words], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("name", full_size.STEPS)
def test_the_plan_names_what_there_is(name: str) -> None:
    step, things = full_size.STEPS[name], full_size.PLAN["things"]
    commands = [step["command"], *(things[need]["command"] for need in step.get("needs", ()))]
    for command in commands:
        kind = command.split()[0]
        words = NOWHERE.words(command)
        assert not re.search(r"[$\\{}]", " ".join(words))
        if kind in ("make", "program", "two_ranks"):
            script = next(at for at, word in enumerate(words) if word.endswith(".py") and "rehearsal" in word)
            assert words[script + 1] in functions(Path(words[script]).stem)
    assert {step.get("against", name), step.get("interrupted_after_half_of", name)} <= full_size.STEPS.keys()


def test_steps_are_measured_once_and_make_a_page(tmp_path: Path) -> None:
    out, page, work = tmp_path / "result.json", tmp_path / "page.md", tmp_path / "work"
    steps = ["index_interrupted", "index_header", "open_index_8", "tables"]
    words = ["--folder", str(work), "--out", str(out), "--scales", str(SCALE), "--label", "now"]
    rehearse(*words, "--steps", *steps, "--page", str(page))
    records = json.loads(out.read_text())["labels"]["now"]["scales"][str(SCALE)]
    assert list(records) == steps
    assert "index_full" in records["index_interrupted"]["failed"], "the reason stands in place of figures"
    for name in steps[1:]:
        record = records[name]
        assert "failed" not in record, record
        assert record["cpu_s"] > 0
        assert record["memory_mb"] > 10
        assert record["read_mb"] > 1
    assert records["open_index_8"]["memory_mb"] > 1.5 * records["tables"]["memory_mb"], "of all processes together"
    text = page.read_text()
    assert text.count("| now |") == len(steps)
    assert "## Not measured" in text
    assert not list(work.iterdir()), "what was made is gone"

    before = out.read_text()
    rehearse(*words, "--steps", "index_header")
    assert json.loads(out.read_text())["labels"]["now"]["scales"] == json.loads(before)["labels"]["now"]["scales"]


def committed() -> tuple[str, dict[str, Any]]:
    """The newest result's name and labels."""
    *_, file = sorted((REPOSITORY / "benchmarks" / "results").glob("*-full-size.json"))
    labels = json.loads(file.read_text())["labels"]
    return file.name, labels


def test_the_page_is_that_of_the_newest_result() -> None:
    name, labels = committed()
    assert (REPOSITORY / "docs" / "full_size.md").read_text() == full_size.page(labels, full_size.PLAN["groups"], name)


def test_the_plan_of_a_graph_counts_what_was_measured() -> None:
    _, labels = committed()
    seconds = {name: step["found"].get("after_imports_s") for name, step in labels["after"]["scales"]["1"].items()}
    start = labels["after"]["scales"]["1"]["import_torch"]["wall_s"] + seconds["open_index"] + seconds["first_batch_0"]
    assert start == pytest.approx(START_S, abs=1)
    answers = (seconds["store_dense"] + seconds["stage_end"]) / (3 * value("val_images"))
    assert answers == pytest.approx(RESULT_S, rel=0.1)


def test_growth_is_an_exponent() -> None:
    grown = {"wall_s": 20.0, "cpu_s": 20.0}
    scales = {"10": {"a": {"wall_s": 2.0, "cpu_s": 2.0}, "b": grown}, "1": {"a": grown}}
    growth = full_size.page.__globals__["_growth"]
    assert growth(scales, "a", {}) == "1.00"
    assert growth(scales, "b", {"against": "a", "times": 3}) == "2.10"
    assert growth(scales, "b", {}) == ""
