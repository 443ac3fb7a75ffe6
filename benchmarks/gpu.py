"""Tests and benchmarks that need a GPU, the most valuable first: run by `make test-gpu` or a plain interpreter.

    python3 benchmarks/gpu.py [--images IMAGES] [--minutes 25] [--results FOLDER] [STEP ...]

Each step's result lies in FOLDER, as <date>-gpu-<step>.json and .md, the moment it is there, and a line a step in
<date>-gpu-summary.txt: the machine may be taken away at any time. The same command goes on where the last one stopped:
what has a result of today is not run again, and what failed comes last. A step that does not fit into the minutes that
are left is not started, one that hangs is ended, and one that fails keeps no other from running (exit status 1).

IMAGES is a folder or an archive of photographs with train/ and val/; without it, small digits that are made on the
spot, and no training on photographs. --tiny runs every step with a very small net on the CPU: no figures, only whether
the commands are right.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # it need not be installed
RESULTS = REPOSITORY / "benchmarks" / "results"
DIGITS = "builtin:digits"
GRACE_S = 30  # beyond the budget, for a step that is running
STOPPED = 75  # of `vggrepro`: saved, to be continued

EAGER, COMPILED = "--set train.compile=false", "--set train.compile=true"
TINY = "--set model.crop=32 --set model.width=0.0625 --set run.device=cpu"
TINY_STEP = f"--nets A --batches 2 --steps 1 --rounds 1 {TINY}"
TINY_DENSE = f"--net A --scales 37 --images 4 --rounds 1 --set data.S=37 {TINY}"
TINY_COMM = f"--net A --steps 1 --rounds 1 --set train.batch=4 {TINY}"
TINY_WAYS = f"--net A --batch 2 --steps 1 --rounds 1 {TINY}"
TINY_EPOCH = f"--net A --steps 1 --rounds 1 --set data.S=37 --set train.batch=4 --set train.log_every=1 {TINY}"
TINY_DALI = f"{TINY_EPOCH} --set data.backend=dali"
TINY_GRAPH = f"{TINY} --set data.S=37 --set evaluation.multi_Q=[37] --set train.batch=4 --set train.iterations=2"

# a package that is missing there hides the tests of its file, not all others
TESTS = "-m pytest -m gpu --timeout 120 --durations 5 --continue-on-collection-errors"
STEP = "-m vggrepro bench step"
DENSE = "-m vggrepro bench dense --set data.root={images} --set model.classes={classes} --images 200 --rounds 3"
DENSE += " --set model.crop=224 --set model.width=1.0 --set data.S=[256,512]"
FEATURES = DENSE.replace("bench dense", "bench features")
LOADER = "-m vggrepro bench loader {images}"
COMM = "-m torch.distributed.run --standalone --nproc-per-node 2 -m vggrepro bench comm --json --steps 2 --rounds 3"
COMM += " --set train.batch=64 --set train.precision=bf16"
EPOCH = "benchmarks/epoch.py {images} --set model.classes={classes}"
MODES = "benchmarks/step_ways.py eager default reduce-overhead max-autotune-no-cudagraphs"
CUDNN = "benchmarks/step_ways.py train.cudnn=benchmark train.cudnn=deterministic"
GRAPH = "-m vggrepro reproduce --config configs/reduced/imagenette_gpu.yaml --set data.root={images}"
GRAPH += " --set tracking.mlflow={mlflow} --stop-after {minutes}"


@dataclass(frozen=True)
class Step:
    """A row of the plan."""

    name: str
    command: str
    """What follows `python`, with {images}, their number of {classes}, {minutes} left, {mlflow} (true or false)."""
    seconds: int
    """Expected on one H100, from start to end; twice as many end it."""
    tiny: str
    """Options that make it a matter of seconds on a CPU."""
    needs: tuple[str, ...] = ()
    """`photographs`, `DALI`."""
    may_fail: bool = False
    """Whether a failure is a finding: most versions of NCCL refuse two ranks on one GPU."""
    takes_the_rest: bool = False
    """Whether it uses what is left of the budget, at least `seconds`."""


STEPS = (
    Step("smoke", f"{STEP} --nets D --batches 64 --rounds 3 {EAGER} --json", 35, TINY_STEP),
    Step("tests", TESTS, 120, "--collect-only"),
    Step("step-eager-D-256", f"{STEP} --nets D --batches 256 {EAGER} --json", 40, TINY_STEP),
    Step("step-eager-D", f"{STEP} --nets D --batches 32,64,128 {EAGER} --json", 60, TINY_STEP),
    Step("step-eager-A", f"{STEP} --nets A --batches 32,64,128,256 {EAGER} --json", 60, TINY_STEP),
    Step("step-eager-E", f"{STEP} --nets E --batches 32,64,128,256 {EAGER} --json", 90, TINY_STEP),
    Step("step-compiled-D-256", f"{STEP} --nets D --batches 256 {COMPILED} --json", 70, TINY_STEP),
    Step("step-compiled-AE-256", f"{STEP} --nets A,E --batches 256 {COMPILED} --json", 100, TINY_STEP),
    Step("profile-eager", f"-m vggrepro bench profile {EAGER} --json", 35, f"--set train.batch=2 {TINY}"),
    Step("profile-compiled", f"-m vggrepro bench profile {COMPILED} --json", 60, f"--set train.batch=2 {TINY}"),
    Step("epoch", EPOCH, 90, TINY_EPOCH, ("photographs",)),
    Step("epoch-dali_gpu", f"{EPOCH} --set data.backend=dali_gpu", 90, TINY_DALI, ("photographs", "DALI")),
    Step("dense", f"{DENSE} --json", 60, TINY_DENSE),
    Step("dense-bf16", f"{DENSE} --set evaluation.precision=bf16 --json", 45, TINY_DENSE),
    Step("loader", f"{LOADER} --json", 90, "--S 37 --crop 32 --images 20 --batch 4 --batches 2 --rounds 1"),
    Step("comm-gloo", f"{COMM} --backend gloo", 90, TINY_COMM),
    Step("comm-nccl", f"{COMM} --backend nccl", 40, f"{TINY_COMM} --backend gloo", may_fail=True),
    Step("save-stall", "benchmarks/checkpoint_stall.py", 60, f"--rounds 2 {TINY}"),
    Step("features", f"{FEATURES} --set evaluation.precision=bf16 --json", 60, TINY_DENSE),
    Step("compile-modes-32", f"{MODES} --batch 32", 150, TINY_WAYS),
    Step("compile-modes-256", f"{MODES} --batch 256", 180, TINY_WAYS),
    Step("cudnn", f"{CUDNN} --batch 256", 50, TINY_WAYS),
    Step("step-compiled-D", f"{STEP} --nets D --batches 32,64,128 {COMPILED} --json", 120, TINY_STEP),
    Step("step-compiled-AE", f"{STEP} --nets A,E --batches 32,64,128 {COMPILED} --json", 240, TINY_STEP),
    Step("imagenette", GRAPH, 90, TINY_GRAPH, ("photographs",), takes_the_rest=True),
)


class Visit:
    """A call: folder of results, resources, remaining time."""

    def __init__(self, results: Path, images: str | None, minutes: float, *, tiny: bool = False) -> None:
        results.mkdir(parents=True, exist_ok=True)
        self.results = results
        self.date = datetime.date.today().isoformat()
        self.images = images or DIGITS
        self.tiny = tiny
        self.ends = time.monotonic() + 60 * minutes
        self.mlflow = importlib.util.find_spec("mlflow") is not None
        self.missing = {"DALI"} - ({"DALI"} if has_dali() else set()) | (set() if images else {"photographs"})
        self.machine = machine()

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def file(self, step: Step, ending: str) -> Path:
        """File of a step's result."""
        return self.results / f"{self.date}-gpu-{step.name}.{ending}"

    def status(self, step: Step) -> str | None:
        """ok, stopped, failed, or None where there is no result of today."""
        try:
            return json.loads(self.file(step, "json").read_text(encoding="utf-8"))["status"]
        except (OSError, ValueError, KeyError):
            return None

    def echo(self, line: str) -> None:
        """On the screen and into the summary."""
        line = f"{datetime.datetime.now():%H:%M:%S} {line}"
        print(line, flush=True)
        with (self.results / f"{self.date}-gpu-summary.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def command(self, step: Step) -> list[str]:
        """Returns the arguments after `python`. Raises the errors of opening the images."""
        text = f"{step.command} {step.tiny}" if self.tiny else step.command
        text += f" --set run.root={self.results / 'runs'}" if self.tiny and step.takes_the_rest else ""
        classes = number_of_classes(self.images) if "{classes}" in text else 0
        minutes = f"{max(0.1, (self.left() - GRACE_S) / 60):.1f}"
        mlflow = str(self.mlflow and not self.tiny).lower()
        fields = {"images": self.images, "classes": classes, "minutes": minutes, "mlflow": mlflow}
        return [part.format(**fields) for part in shlex.split(text)]

    def public(self, text: str) -> str:
        """A text without the places of this machine."""
        photographs = {} if self.images == DIGITS else {self.images: "IMAGES"}
        # the interpreter may lie in the checkout
        for place, name in (photographs | {sys.executable: "python", f"{REPOSITORY}/": ""}).items():
            text = text.replace(place, name)
        return text

    def run(self, step: Step) -> str:
        """Runs a step, writes its result, says how it went; the status."""
        seconds = 60 if self.tiny else step.seconds
        limit = self.left() + GRACE_S if step.takes_the_rest else min(2 * seconds, self.left()) + GRACE_S
        started = time.monotonic()
        try:
            command = self.command(step)
            code, output, errors = call([sys.executable, *command], limit, tiny=self.tiny)
        except Exception as error:  # of images that cannot be opened, of a system that starts nothing
            command, code, output, errors = [step.command], 1, "", f"{type(error).__name__}: {error}"
        ran_s = time.monotonic() - started
        output, errors = self.public(output), self.public(errors)
        ended = f"over its limit of {limit:.0f} s" if code is None else f"exit status {code}"
        status = "ok" if code == 0 else "stopped" if code == STOPPED else "failed"
        found = figures(step, output or errors) if status != "failed" else {"name": step.name, "failed": ended}
        if status == "failed":
            found["error"] = (output + "\n" + errors).strip().splitlines()[-60:]
        about = {"command": self.public(shlex.join(["python", *command])), "date": self.date}
        found |= about | {"seconds": round(ran_s, 1), "machine": self.machine, "status": status}
        write(self.file(step, "json"), json.dumps(found, indent=1) + "\n")
        write(self.file(step, "md"), to_markdown(found))
        self.echo(f"{step.name}: {status}, {ran_s:.0f} s of {step.seconds}: {headline(found)}")
        return "ok" if step.may_fail else status


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Runs the steps in their order, those that failed before last; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all of " + " ".join(s.name for s in steps))
    parser.add_argument("--images", "--pictures", help="folder or archive of photographs")
    parser.add_argument("--minutes", type=float, default=25, help="after which nothing new is started")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results, with --tiny runs/gpu-tiny")
    parser.add_argument("--again", action="store_true", help="also what has a result of today")
    parser.add_argument("--tiny", action="store_true", help="very small, on the CPU")
    given = parser.parse_args(arguments)
    if unknown := set(given.steps) - {step.name for step in steps}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}; known: {', '.join(s.name for s in steps)}")
    results = given.results or (REPOSITORY / "runs" / "gpu-tiny" if given.tiny else RESULTS)
    images = str(Path(given.images).resolve()) if given.images else None
    visit = Visit(results.resolve(), images, given.minutes, tiny=given.tiny)
    wanted = [step for step in steps if not given.steps or step.name in given.steps]
    visit.echo(f"{visit.machine['gpu'] or 'no GPU'}, torch {visit.machine['torch']}, {given.minutes:g} minutes")
    for what in sorted(visit.missing):
        names = [step.name for step in wanted if what in step.needs]
        if names:
            visit.echo(f"no {what}: left out {', '.join(names)}")
    if not visit.mlflow:
        visit.echo("no MLflow: runs are not mirrored, and tests of the mirror are left out")
    wanted = [step for step in wanted if not visit.missing.intersection(step.needs)]
    before = {step.name: None if given.again else visit.status(step) for step in wanted}
    failed = []
    for step in sorted(wanted, key=lambda step: (step.takes_the_rest, before[step.name] == "failed")):
        if before[step.name] == "ok" or (before[step.name] == "failed" and step.may_fail):
            visit.echo(f"{step.name}: has a result of today")
        elif (0 if given.tiny else step.seconds) > visit.left():
            visit.echo(f"{step.name}: left out, expected {step.seconds} s, {max(0, visit.left()):.0f} s are left")
        elif visit.run(step) == "failed":
            failed.append(step.name)
    visit.echo(f"failed: {', '.join(failed)}" if failed else "done")
    return int(bool(failed))


def call(command: list[str], limit: float, *, tiny: bool) -> tuple[int | None, str, str]:
    """Exit status (None where the limit ended it), standard output and error of a command and all that it starts."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if tiny:
        environment |= {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}  # compiling takes a minute
    # into files: a pipe would stay open as long as some grandchild lives
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, cwd=REPOSITORY, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return code, texts[0], texts[1]


def figures(step: Step, output: str) -> dict[str, Any]:
    """The JSON object that a benchmark prints, or the end of what another program says."""
    try:
        return json.loads(output[output.index("{") : output.rindex("}") + 1])
    except ValueError:
        return {"name": step.name, "output": output.strip().splitlines()[-60:]}


def headline(found: dict[str, Any]) -> str:
    """A result in a few words."""
    if "failed" in found:
        return "\n    ".join([found["failed"], *found["error"][-3:]])
    if "output" in found:
        return found["output"][-1] if found["output"] else ""
    if "ours" in found:
        text = f"ours {found['ours']:.4g}, usual {found['usual']:.4g} {found['unit']}, ratio {found['ratio']:.3g}"
    else:
        numbers = {key: item for key, item in found["details"].items() if isinstance(item, float) and key != "load"}
        text = ", ".join(f"{key} {item:.4g}" for key, item in numbers.items())
    return text + (f", MFU {found['mfu']:.1%}" if found.get("mfu") else "")


def to_markdown(found: dict[str, Any]) -> str:
    """A result for people."""
    ceiling = f", ceiling {found['ceiling']:.4g}" if found.get("ceiling") else ""
    head = f"# {found['name']}, {found['date']}", f"    {found['command']}", headline(found) + ceiling
    lines = [line for part in head for line in (part, "")]
    for title in ("output", "error"):
        lines += ["```", *found[title], "```", ""] if title in found else []
    for key, item in [*found.get("details", {}).items(), *found["machine"].items(), ("seconds", found["seconds"])]:
        if isinstance(item, list) and item and isinstance(item[0], dict):
            lines += [f"- {key}:", *(f"  {number}. {_short(entry)}" for number, entry in enumerate(item, 1))]
        else:
            lines.append(f"- {key}: {_short(item)}")
    return "\n".join(lines) + "\n"


def _short(item: object) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{name} {_short(number)}" for name, number in item.items())
    if isinstance(item, list):
        return ", ".join(map(_short, item))
    return f"{item:.4g}" if isinstance(item, float) else str(item)


def write(file: Path, text: str) -> None:
    """At once or not at all."""
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even another package of nvidia's
        return False


def machine() -> dict[str, Any]:
    """GPU, driver, versions, commit."""
    from vggrepro.storage.environment import environment

    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        gpu = ""
    return {"gpu": gpu} | {key: item for key, item in environment().items() if key != "command"}


def number_of_classes(images: str) -> int:
    """Counts the classes of the photographs; their index stays in runs/ for later steps."""
    from vggrepro.data.images.scan import open_index

    if images == DIGITS:
        return 10
    return len(open_index(images, None, REPOSITORY / "runs" / "index", lambda done, total: None).classes)


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)  # and with it the step that is running


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
