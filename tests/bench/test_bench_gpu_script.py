"""`benchmarks/gpu.py`: the order of steps, its budget, what a second call does, and commands that the CLI takes."""

import datetime
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import typer
from tiny import REPOSITORY

from vggrepro.cli.main import app
from vggrepro.config.parsing import override
from vggrepro.config.recipes import load_graph


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


gpu = load("gpu")
TODAY = datetime.date.today().isoformat()
FOUND = {"name": "fake", "ours": 3.0, "usual": 2.0, "ratio": 1.5, "unit": "images/s", "mfu": 0.4, "details": {"a": 1.0}}


def program(code: str, name: str = "one", seconds: int = 1, **rest: object) -> gpu.Step:
    """A step that runs this code; braces are those of the script's placeholders."""
    return gpu.Step(name, f'-c "{code}"', seconds, "", **rest)


def prints(name: str = "one", **rest: object) -> gpu.Step:
    text = json.dumps(FOUND).replace('"', "'").replace("{", "{{").replace("}", "}}")
    return program(f"import json; print(json.dumps({text}))", name, **rest)


def run(folder: Path, *steps: gpu.Step, minutes: float = 1, options: tuple[str, ...] = ()) -> int:
    return gpu.main([*options, "--results", str(folder), "--minutes", str(minutes)], steps)


def result(folder: Path, name: str = "one") -> dict:
    return json.loads((folder / f"{TODAY}-gpu-{name}.json").read_text())


def summary(folder: Path) -> str:
    return (folder / f"{TODAY}-gpu-summary.txt").read_text()


@pytest.mark.parametrize("name", sorted(file.stem for file in (REPOSITORY / "benchmarks").glob("*.py")))
def test_every_benchmark_finds_what_it_imports(name: str) -> None:
    assert load(name).__doc__


def test_a_result_describes_its_machine(tmp_path: Path) -> None:
    assert run(tmp_path, prints()) == 0
    found = result(tmp_path)
    assert FOUND.items() <= found.items()
    assert found["status"] == "ok"
    assert found["date"] == TODAY
    assert found["command"].startswith("python -c")
    assert {"gpu", "torch", "python", "git_commit"} <= found["machine"].keys()
    markdown = (tmp_path / f"{TODAY}-gpu-one.md").read_text()
    assert "ours 3, usual 2 images/s, ratio 1.5, MFU 40.0%" in markdown
    assert "one: ok" in summary(tmp_path)


def test_no_place_of_this_machine_is_in_a_result(tmp_path: Path) -> None:
    images = tmp_path / "photographs"
    images.mkdir()
    code = f"import sys; print(sys.argv[1], '{REPOSITORY}/x', sys.executable)"
    step = gpu.Step("one", f'-c "{code}" {{images}}', 1, "", needs=("photographs",))
    run(tmp_path, step, options=("--images", str(images)))
    text = (tmp_path / f"{TODAY}-gpu-one.json").read_text()
    assert result(tmp_path)["output"] == ["IMAGES x python"]
    assert str(tmp_path) not in text
    assert str(REPOSITORY) not in text
    assert sys.executable not in text


def test_results_are_there_while_later_steps_still_run(tmp_path: Path) -> None:
    looks = program(f"import os; print(sorted(os.listdir('{tmp_path}')))", "two")
    run(tmp_path, prints(), looks)
    seen = result(tmp_path, "two")["output"][-1]
    assert all(f"{TODAY}-gpu-one.{ending}" in seen for ending in ("json", "md"))
    assert f"{TODAY}-gpu-summary.txt" in seen


def test_a_second_call_runs_only_what_has_no_result(tmp_path: Path) -> None:
    counted = program(f"print('x', file=open('{tmp_path}/count', 'a'))")
    run(tmp_path, counted)
    run(tmp_path, counted, prints("two"))
    assert (tmp_path / "count").read_text().count("x") == 1
    assert result(tmp_path, "two")["status"] == "ok"
    assert "one: has a result of today" in summary(tmp_path)
    run(tmp_path, counted, options=("--again",))
    assert (tmp_path / "count").read_text().count("x") == 2


def test_a_failing_step_keeps_no_other_from_running_and_comes_last_the_next_time(tmp_path: Path) -> None:
    broken = program("import sys; sys.exit('out of ideas')", "broken")
    assert run(tmp_path, broken, prints()) == 1
    assert result(tmp_path)["status"] == "ok"
    assert result(tmp_path, "broken")["error"] == ["out of ideas"]
    assert "broken: failed" in summary(tmp_path)
    assert "out of ideas" in summary(tmp_path)
    (tmp_path / f"{TODAY}-gpu-summary.txt").unlink()
    assert run(tmp_path, broken, prints("two")) == 1
    assert summary(tmp_path).index("two: ok") < summary(tmp_path).index("broken: failed")


def test_a_failure_that_is_a_finding_is_none_of_the_script(tmp_path: Path) -> None:
    refused = program("import sys; sys.exit('duplicate GPU')", may_fail=True)
    assert run(tmp_path, refused) == 0
    assert result(tmp_path)["error"] == ["duplicate GPU"]
    run(tmp_path, refused)
    assert "one: has a result of today" in summary(tmp_path)


def test_what_does_not_fit_is_left_out_and_what_fits_is_run(tmp_path: Path) -> None:
    assert run(tmp_path, prints("long", seconds=90), prints("short"), minutes=1) == 0
    assert "long: left out, expected 90 s" in summary(tmp_path)
    assert result(tmp_path, "short")["status"] == "ok"


def test_a_step_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE_S", 0)
    child = "import time; time.sleep(60)"
    hangs = program(f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'])", "hangs")
    started = time.monotonic()
    assert run(tmp_path, hangs, prints()) == 1
    assert time.monotonic() - started < 30
    assert "over its limit of 2 s" in summary(tmp_path)
    assert result(tmp_path)["status"] == "ok"


def test_a_step_that_was_stopped_goes_on_the_next_time(tmp_path: Path) -> None:
    stopped = program("print('{minutes}'); raise SystemExit(75)", takes_the_rest=True)
    assert run(tmp_path, stopped, minutes=2) == 0
    assert result(tmp_path)["status"] == "stopped"
    assert 1.0 < float(result(tmp_path)["output"][0]) <= 1.5
    run(tmp_path, stopped, minutes=2)
    assert summary(tmp_path).count("one: stopped") == 2


def test_steps_whose_needs_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "has_dali", lambda: False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name))
    steps = prints("decodes", needs=("DALI",)), prints("trains", needs=("photographs",)), program("print('{mlflow}')")
    assert run(tmp_path, *steps) == 0
    assert "no DALI: left out decodes" in summary(tmp_path)
    assert "no photographs: left out trains" in summary(tmp_path)
    assert "no MLflow" in summary(tmp_path)
    assert result(tmp_path)["output"] == ["false"]


def test_images_that_cannot_be_opened_fail_their_steps_only(tmp_path: Path) -> None:
    needs = program("print({classes})", "classes", needs=("photographs",))
    assert run(tmp_path, needs, prints(), options=("--images", str(tmp_path / "nowhere"))) == 1
    assert "does not exist" in summary(tmp_path)
    assert result(tmp_path)["status"] == "ok"


def test_steps_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, prints(), prints("two"), options=("two",))
    assert not (tmp_path / f"{TODAY}-gpu-one.json").exists()
    assert result(tmp_path, "two")["status"] == "ok"
    with pytest.raises(SystemExit):
        run(tmp_path, prints(), options=("three",))
    assert "no such step: three" in capsys.readouterr().err


def test_the_most_valuable_steps_come_first() -> None:
    names = [step.name for step in gpu.STEPS]
    assert len(set(names)) == len(names)
    assert names[:3] == ["smoke", "tests", "step-eager-D-256"]
    assert names[-1] == "imagenette"
    order = ["smoke", "tests", "step-eager-D-256", "step-compiled-D-256", "profile-eager", "epoch", "dense", "loader"]
    order += ["comm-gloo", "save-stall", "compile-modes-256", "cudnn", "imagenette"]
    assert sorted(order, key=names.index) == order


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("step", gpu.STEPS, ids=lambda step: step.name)
def test_the_command_of_every_step_is_taken(
    step: gpu.Step, tiny: bool, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "number_of_classes", lambda images: 3)
    visit = gpu.Visit(tmp_path, str(images), 9, tiny=tiny)
    command = visit.command(step)
    changes = [command[number + 1] for number, part in enumerate(command) if part == "--set"]
    settings = [change for change in changes if not change.startswith("train.cudnn=")]
    if "reproduce" in command:
        graph = load_graph(REPOSITORY / command[command.index("--config") + 1], settings)
        assert len(graph.stages) == 14
    elif settings:
        from vggrepro.bench.step import plain

        S = [f"data.S={command[command.index('--S') + 1]}"] if "--S" in command else []
        override(plain(), [*S, *settings], Path(step.name))
    if "vggrepro" in command:
        words = command[command.index("vggrepro") + 1 :]
        parsed = typer.main.get_command(app)
        while hasattr(parsed, "commands"):
            name, *words = words
            parsed = parsed.commands[name]
        parsed.make_context(step.name, words)  # raises for an option that is unknown or has a wrong value
