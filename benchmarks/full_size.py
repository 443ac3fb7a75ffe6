"""The dress rehearsal: everything that the pipeline does at ILSVRC's size, but for the pixels and the nets.

    python benchmarks/full_size.py --folder WORK --out RESULT.json [--label before] [--scales 100 10 1]
    python benchmarks/full_size.py --page docs/full_size.md --out RESULT.json

Makes a stand-in for ILSVRC-2012 in WORK (true names, counts and layouts; images of some hundred bytes), then measures
each step of benchmarks/rehearsal/steps.yaml at 1/100, 1/10 and 1/1 of the counts: wall and processor time, peak memory,
bytes read. What is measured is the checkout that PYTHONPATH names, else this one; a second label stands beside the
first, in the same file or in another. RESULT.json is written after each step, and a step that is there is not run again
unless `--again STEP ...` names it; a step that fails, or takes longer than its limit, has the reason there. WORK takes
14 GB at 1/1, and is emptied in the end but with `--keep`, which spares a second label the making.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

from rehearsal.measure import machine, measure, run  # noqa: E402
from rehearsal.page import page  # noqa: E402

PROGRAMS = {
    "python": "",
    "vggrepro": "-m vggrepro",
    "submit": "{checkout}/launch/submit.py",
    "make": "{here}/rehearsal/stand_in.py",
    "program": "{here}/rehearsal/programs.py",
    "two_ranks": "-m torch.distributed.run --standalone --nproc-per-node 2 {here}/rehearsal/programs.py",
}
LIMIT_S = 1200.0
PLAN = yaml.safe_load((HERE / "rehearsal" / "steps.yaml").read_text())
STEPS: dict[str, dict[str, Any]] = {name: step for steps in PLAN["groups"].values() for name, step in steps.items()}


@dataclass(frozen=True)
class Place:
    """Folders of a scale and a label."""

    work: Path
    label: str
    scale: int

    @property
    def shared(self) -> Path:
        """Folder that all labels share."""
        return self.work / f"1-{self.scale}"

    @property
    def output(self) -> Path:
        """Output of the measured code, and logs."""
        return self.shared / self.label

    @cached_property
    def environment(self) -> dict[str, str]:
        """Environment of the measured processes."""
        return os.environ | {
            "PYTHONPATH": str(Path(os.environ.get("PYTHONPATH") or HERE.parent).absolute()),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "",
        }

    @cached_property
    def checkout(self) -> Path:
        """Whose package is measured."""
        code = "import vggrepro; print(vggrepro.__file__)"
        command = [sys.executable, "-P", "-c", code]  # -P: not that of the working directory
        found = subprocess.run(command, env=self.environment, capture_output=True, check=True)
        return Path(found.stdout.decode().strip()).parents[1]

    @cached_property
    def commit(self) -> str:
        """Commit of the checkout."""
        git = ("git", "-C", str(self.checkout), "describe", "--always", "--dirty", "--exclude", "*")
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"

    def text(self, template: str) -> str:
        """A text of the plan with its names filled in."""
        places = {"shared": str(self.shared), "output": str(self.output), "scale": str(self.scale)}
        named = {name: Template(text).substitute(places) for name, text in PLAN["names"].items()}
        return Template(template).substitute(places | named)

    def words(self, command: str) -> list[str]:
        """A command of the plan."""
        program, *rest = shlex.split(self.text(command))
        return [sys.executable, *PROGRAMS[program].format(here=HERE, checkout=self.checkout).split(), *rest]

    def remove(self, *paths: str) -> None:
        """Files and folders of the plan, those that are there."""
        for path in map(Path, map(self.text, paths)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def make(self, name: str) -> None:
        """Makes a thing, unless it is there, and what that needs. Raises RuntimeError."""
        thing = PLAN["things"][name]
        for need in thing.get("needs", ()):
            self.make(need)
        path = Path(self.text(thing["path"]))
        if not path.exists():
            started = time.perf_counter()
            self.remove(f"{thing['path']}.part")
            run(self.words(thing["command"]), self.environment, self.output / f"make_{name}.log")
            say(f"1/{self.scale} made {name} in {time.perf_counter() - started:.0f} s")
        if name == "index":  # runs, which all labels use, know their images by each one's own
            link = Path(self.text("$index"))
            link.unlink(missing_ok=True)
            link.symlink_to(path)

    def renew(self, pattern: str) -> None:
        """Removes what commands have put into runs since they were made, summaries of answers say."""
        for root in (self.shared / name for name in ("runs", "seeds")):
            if (listed := root.with_suffix(".json")).exists():
                made = set(json.loads(listed.read_text()))
                for file in [file for file in root.glob(pattern) if file.is_file()]:
                    if str(file.relative_to(root)) not in made:
                        file.unlink()

    def interrupt(self, command: str, after_s: float) -> dict[str, Any]:
        """Runs a command for so long, then asks it to stop, as Ctrl-C does."""
        process = subprocess.Popen(
            self.words(command),
            cwd=self.output,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        stopped = time.perf_counter()
        return {"interrupted_after_s": after_s, "status": process.wait(), "left_after_s": time.perf_counter() - stopped}

    def perform(self, name: str, records: Mapping[str, Any]) -> dict[str, Any]:
        """Measures a step, in the light of those before; the record of a failure has the reason."""
        step, before = STEPS[name], {}
        self.output.mkdir(parents=True, exist_ok=True)
        try:
            for need in step.get("needs", ()):
                self.make(need)
            self.remove(*step.get("fresh", ()))
            if "renewed" in step:
                self.renew(step["renewed"])
            if reference := step.get("interrupted_after_half_of"):
                if "wall_s" not in records.get(reference, {}):
                    raise RuntimeError(f"it is interrupted after half the time of {reference}; measure that first")
                before = self.interrupt(step["command"], records[reference]["wall_s"] / 2)
            log, limit_s = self.output / f"{name}.log", step.get("limit_s", LIMIT_S)
            record = measure(self.words(step["command"]), self.environment, log, limit_s, step.get("status", [0]))
            record["found"] = record.get("found", {}) | before
        except (RuntimeError, OSError, ValueError) as error:
            record = {"failed": str(error)}
        self.remove(*step.get("after", ()))
        return record | {"commit": self.commit, "date": datetime.date.today().isoformat()}


def rehearse(options: argparse.Namespace) -> None:
    """Measures what is not measured yet."""
    results = json.loads(options.out.read_text()) if options.out.exists() else {"labels": {}}
    of_label = results["labels"].setdefault(options.label, {"scales": {}})
    of_label |= {"machine": machine(), "command": shlex.join(["python", "benchmarks/full_size.py", *sys.argv[1:]])}
    for scale in options.scales:
        place = Place(options.folder.absolute(), options.label, scale)
        records = of_label["scales"].setdefault(str(scale), {})
        for name in options.steps or STEPS:
            if scale not in STEPS[name].get("scales", [scale]) or (name in records and name not in options.again):
                continue
            record = records[name] = place.perform(name, records)
            say(f"1/{scale} {name}: {record.get('failed') or short(record)}")
            write(options.out, json.dumps(results, indent=1) + "\n")
        if not options.keep:
            place.remove("$shared")


def short(record: Mapping[str, Any]) -> str:
    times = f"{record['wall_s']:.1f} s wall, {record['cpu_s']:.1f} s processor"
    return f"{times}, {record['memory_mb']:,.0f} MB, {record['read_mb']:,.0f} MB read"


def say(line: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


def write(file: Path, text: str) -> None:
    """All or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(text)
    temporary.replace(file)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything is made; without it nothing is measured")
    parser.add_argument("--out", type=Path, required=True, help="the result, one JSON object")
    parser.add_argument("--label", default="before", help="of the code that is measured")
    parser.add_argument("--scales", type=int, nargs="+", default=[100, 10, 1], help="by which counts are divided")
    parser.add_argument("--steps", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--again", nargs="+", default=[], choices=STEPS, metavar="STEP", help="measured once more")
    parser.add_argument("--keep", action="store_true", help="leave WORK as it is in the end")
    parser.add_argument("--page", type=Path, help="write the results as Markdown")
    parser.add_argument("--beside", type=Path, help="another result, whose labels come first in the page")
    options = parser.parse_args(words)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which a shell's background ignores, and what starts there
    if options.folder:
        rehearse(options)
    if options.page:
        files = [file for file in (options.beside, options.out) if file]
        labels = {name: found for file in files for name, found in json.loads(file.read_text())["labels"].items()}
        write(options.page, page(labels, PLAN["groups"], options.out.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
