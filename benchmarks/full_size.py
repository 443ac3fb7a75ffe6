# ruff: noqa: E501
"""The dress rehearsal: everything that the pipeline does at ILSVRC's size, but for the pixels and the nets.

    python benchmarks/full_size.py --folder WORK --out RESULT.json [--label before] [--scales 100 10 1]
    python benchmarks/full_size.py --page docs/full_size.md --out RESULT.json

Makes a stand-in for ILSVRC-2012 in WORK (true names, counts and layouts; images of some hundred bytes), then measures
each step at 1/100, 1/10 and 1/1 of the counts: wall and processor time, peak memory, bytes read. What is measured is
the checkout that PYTHONPATH names, else this one; a second label stands beside the first in the same file. RESULT.json
is written after each step, and a step that is there is not run again unless `--again STEP ...` names it; a step that
fails, or takes longer than its limit, has the reason there. WORK takes 14 GB at 1/1, and is emptied in the end but with
`--keep`, for a second label.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

from rehearsal.measure import machine, measure, run  # noqa: E402
from rehearsal.page import page  # noqa: E402


@dataclass(frozen=True)
class Place:
    """Where things of one scale lie, for one label."""

    work: Path
    label: str
    scale: int

    @property
    def shared(self) -> Path:
        """What both labels use."""
        return self.work / f"1-{self.scale}"

    @property
    def own(self) -> Path:
        """What the measured code has made."""
        return self.shared / self.label

    @cached_property
    def environment(self) -> dict[str, str]:
        """Of measured processes."""
        checkout = os.environ.get("PYTHONPATH") or str(HERE.parent)
        return os.environ | {"PYTHONPATH": checkout, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}

    @cached_property
    def checkout(self) -> Path:
        """Whose package is measured."""
        code = "import vggrepro; print(vggrepro.__file__)"
        found = subprocess.run([sys.executable, "-c", code], env=self.environment, capture_output=True, check=True)
        return Path(found.stdout.decode().strip()).parents[1]

    @cached_property
    def commit(self) -> str:
        """Of that checkout."""
        git = ("git", "-C", str(self.checkout))
        found = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        return found.stdout.strip() or "unknown"

    def words(self, command: str) -> list[str]:
        """A command of the tables below as words; its first is no program but one of PROGRAMS."""
        kind, *rest = shlex.split(command.format(s=self.shared, o=self.own, scale=self.scale, **PATHS).format(
            s=self.shared, o=self.own, scale=self.scale))  # fmt: skip
        return [sys.executable, *PROGRAMS[kind].format(here=HERE, checkout=self.checkout).split(), *rest]


PROGRAMS = {
    "python": "",
    "vggrepro": "-m vggrepro",
    "submit": "{checkout}/launch/submit.py",
    "make": "{here}/rehearsal/stand_in.py",
    "program": "{here}/rehearsal/programs.py",
    "two_ranks": "-m torch.distributed.run --standalone --nproc-per-node 2 {here}/rehearsal/programs.py",
}
PATHS = {
    "archives": "{s}/archives",
    "index": "{s}/images.idx",
    "runs": "{s}/runs",
    "one": "{s}/runs/paper/A-256",
    "graph": "--config reproduce --set run.root={s}/runs --set data.index={s}/images.idx",
    "stages": " ".join(f"--runs {{s}}/runs/paper/{name}" for name in ("A-256", "A-LRN-256", "B-256")),
}


@dataclass(frozen=True)
class Thing:
    """What steps need, made once."""

    path: str
    command: str
    needs: tuple[str, ...] = ()


THINGS = {
    "archives": Thing("{s}/archives", "make archives {archives} {scale}"),
    "index": Thing("{o}/images.idx", "vggrepro index {archives} --out {o}/images.idx --verify header", ("archives",)),
    "scan": Thing("{o}/runs/index", "program open_data {archives} {o}/runs", ("archives",)),
    "annotations": Thing("{s}/annotations", "make annotations {s}/annotations {scale}"),
    "boxes": Thing("{o}/boxes.npz", "vggrepro boxes {index} {s}/annotations --out {o}/boxes.npz", ("index", "annotations")),
    "runs": Thing("{s}/runs", "make runs {runs} {scale} {index} {runs}", ("index",)),
    "posteriors": Thing("{s}/posteriors.json", "make posteriors {s}/posteriors.json {scale} {index} {runs}", ("runs",)),
    "seed_runs": Thing("{s}/seeds", "make runs {s}/seeds {scale} {index} {s}/seeds 1,2", ("index",)),
    "seeds": Thing("{s}/seeds.json", "make posteriors {s}/seeds.json {scale} {index} {s}/seeds 1,2", ("posteriors", "seed_runs")),
}  # fmt: skip
THINGS |= {
    name: Thing(f"{{s}}/{name}", f"make features {{s}}/{name} {{scale}} {name}")
    for name in ("caltech256", "voc2007", "voc2012")
}


@dataclass(frozen=True)
class Step:
    """What is measured."""

    name: str
    title: str
    command: str
    needs: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    """Removed before, so that it is done anew."""
    renewed: str | None = None
    """Runs of which only what they were made with stays: a pattern of folders below {runs}."""
    before: Callable[[Place, Mapping[str, Any]], dict[str, Any]] | None = None
    """Done before and not measured; what it finds is noted."""
    status: tuple[int, ...] = (0,)
    scales: tuple[int, ...] = ()
    """At which it is measured; without any, at all."""
    after: tuple[str, ...] = ()
    """Removed in the end."""
    limit_s: float = 1200


def interrupted(place: Place, records: Mapping[str, Any]) -> dict[str, Any]:
    """An index in full that is interrupted when half the time that it took is over."""
    half = records["index_full"]["wall_s"] / 2
    command = place.words("vggrepro index {archives} --out {o}/again.idx")
    process = subprocess.Popen(command, env=place.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    time.sleep(half)
    started = time.perf_counter()
    process.send_signal(signal.SIGINT)
    return {"interrupted_after_s": half, "status": process.wait(), "left_after_s": time.perf_counter() - started}


INDEX, POSTERIORS = ("index",), ("posteriors",)
GROUPS: dict[str, tuple[Step, ...]] = {
    "Imports": (
        Step("import_light", "import what makes tables", 'python -c "import vggrepro.reporting.documents.render"'),
        Step("import_torch", "import what trains", 'python -c "import vggrepro.pipeline.graph"'),
    ),
    "Images": (
        Step("index_header", "index by headers", "vggrepro index {archives} --out {o}/images.idx --verify header", ("archives",), ("{o}/images.idx",)),
        Step("index_full", "index, every image decoded", "vggrepro index {archives} --out {o}/full.idx", ("archives",), ("{o}/full.idx",)),
        Step("index_interrupted", "the rest of an index that was interrupted half way", "vggrepro index {archives} --out {o}/again.idx", ("archives",), ("{o}/again.idx",), before=interrupted),
        Step("open_index", "open the index", "program open_index {index}", INDEX),
        Step("open_index_8", "open it in 8 processes", "program several 8 open_index {index}", INDEX),
        Step("open_data", "open the archives, scanned before", "program open_data {archives} {o}/runs", ("scan",)),
        Step("open_data_8", "open them in 8 processes", "program several 8 open_data {archives} {o}/runs", ("scan",)),
        Step("boxes", "read the annotations of boxes", "vggrepro boxes {index} {s}/annotations --out {o}/boxes.npz", ("index", "annotations"), ("{o}/boxes.npz",)),
        Step("open_boxes", "open the boxes", "program boxes {index} {o}/boxes.npz", ("boxes",)),
    ),
    "Training": (
        Step("first_batch_0", "first batch of a run", "program first_batch {index} 0", INDEX),
        Step("first_batch_300000", "first batch after step 300,000", "program first_batch {index} 300000", INDEX),
        Step("epoch_views", "views of an epoch", "program epoch_views {index}", INDEX),
        Step("masks", "dropout masks of a fifth of an epoch", "program masks {scale}", INDEX),
        Step("validation", "a validation, without a net", "program validation {index}", INDEX),
    ),
    "Testing": (
        Step("test_views", "views of all tests of a net", "program test_views {index}", INDEX),
        Step("store_dense", "store dense answers at 3 Q, without a net", "program store {index} {o}/stored dense", INDEX, ("{o}/stored",)),
        Step("store_multicrop", "store multi-crop answers at 3 Q", "program store {index} {o}/stored multicrop", INDEX, ("{o}/stored",)),
        Step("store_both", "store both at 3 Q", "program store {index} {o}/stored dense,multicrop", INDEX, ("{o}/stored",), after=("{o}/stored",)),
        Step("store_half", "half of dense at one Q, by 2 ranks, interrupted", "two_ranks store {index} {o}/halved dense 0.5", INDEX, ("{o}/halved",)),
        Step("store_rest", "the rest, and the other Q, by one", "program store {index} {o}/halved dense", INDEX, after=("{o}/halved",)),
    ),
    "Other data sets": tuple(
        Step(f"descriptors_{name}", f"{title}: descriptors, and SVMs of two classes at one C", f"program descriptors {{s}}/{name} {{scale}} {name}", (name,), after=(f"{{s}}/{name}",))
        for name, title in (("caltech256", "Caltech-256"), ("voc2007", "VOC 2007"), ("voc2012", "VOC 2012"))
    ),
    "Metrics": (
        Step("resume_metrics", "take metrics.jsonl back to a checkpoint", "program resume_metrics {one} {o}/rewound", ("runs",), ("{o}/rewound",)),
        Step("read_records", "read the loss of a run", "program read_records {one}", ("runs",)),
        Step("curves", "learning curves of twelve runs", "program curves {runs}", ("runs",)),
        Step("mirror_first", "nine tenths of a run into MLflow (SQLite)", "program mirror {one} {o}/mirror 9", ("runs",), ("{o}/mirror",)),
        Step("mirror_requeued", "a later process, nothing new", "program mirror {one} {o}/mirror 9", ("runs",)),
        Step("mirror_last_tenth", "a later process, the last tenth", "program mirror {one} {o}/mirror 10", ("runs",), after=("{o}/mirror",)),
        Step("mirror_server", "these three on a server, with it", "program mirror_on_server {one} {o}/served", ("runs",), ("{o}/served",), after=("{o}/served",)),
    ),
    "Reports": (
        Step("tables", "`vggrepro tables` of twelve stages, for the first time", "vggrepro tables --runs {runs}", POSTERIORS, renewed="*"),
        Step("tables_again", "once more", "vggrepro tables --runs {runs}", POSTERIORS),
        Step("tables_html", "as HTML, with figures", "vggrepro tables --runs {runs} --out {o}/tables.html", POSTERIORS),
        Step("keep", "`vggrepro tables --keep`", "vggrepro tables --runs {runs} --keep {o}/evidence", POSTERIORS, ("{o}/evidence",)),
        Step("compare", "`vggrepro compare` of two runs", "vggrepro compare D-256 E-256 --runs {runs} --out {o}/compare.md", POSTERIORS),
        Step("card", "errors of a model card", "program card {runs}/paper/E-jitter", POSTERIORS, renewed="E-jitter"),
        Step("stage_end", "the end of the last stage: errors, figure, tables of all", "program stage_end {index} {runs}", POSTERIORS, renewed="E-jitter"),
        Step("tables_3_stages", "tables of 3 stages, for the first time", "vggrepro tables {stages}", POSTERIORS, renewed="*", scales=(10,)),
        Step("tables_6_stages", "of 6", "vggrepro tables {stages} --runs {runs}/paper/C-256 --runs {runs}/paper/C-384 --runs {runs}/paper/C-jitter", POSTERIORS, renewed="*", scales=(10,)),
        Step("tables_3_seeds", "of 12 stages under 3 seeds", "vggrepro tables --runs {runs} --runs {s}/seeds", ("seeds",), renewed="*", scales=(10,), after=("{s}/seeds", "{s}/seeds.json")),
    ),
    "A cluster": (
        Step("status", "`submit.py status`", "submit status {graph}", POSTERIORS),
        Step("dry_run", "`submit.py --dry-run`", "submit {graph} --nodes 4 --dry-run", POSTERIORS),
        Step("doctor", "`vggrepro doctor`", "vggrepro doctor {graph}", POSTERIORS, status=(0, 1)),
    ),
}  # fmt: skip
STEPS = {step.name: step for steps in GROUPS.values() for step in steps}


def make(name: str, place: Place) -> None:
    """Makes a thing, unless it is there, and what that needs. Raises RuntimeError."""
    thing = THINGS[name]
    path = Path(thing.path.format(s=place.shared, o=place.own))
    for need in thing.needs:
        make(need, place)
    if not path.exists():
        started = time.perf_counter()
        remove(path.with_name(f"{path.name}.part"))
        run(place.words(thing.command), place.environment, place.own / f"make_{name}.log")
        say(f"1/{place.scale} made {name} in {time.perf_counter() - started:.0f} s")
    if name == "index":  # by its own code's index each label's runs know their images
        link = place.shared / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)


def perform(step: Step, place: Place, records: Mapping[str, Any]) -> dict[str, Any]:
    """A step's record; that of a failure has the reason."""
    place.own.mkdir(parents=True, exist_ok=True)
    try:
        for need in step.needs:
            make(need, place)
        for path in step.fresh:
            remove(Path(path.format(s=place.shared, o=place.own)))
        if step.renewed:
            renew(place, step.renewed)
        found = step.before(place, records) if step.before else {}
        record = measure(place.words(step.command), place.environment, place.own / f"{step.name}.log", step.limit_s)
        if record["status"] in step.status:
            record.pop("failed", None)
        record["found"] = record.get("found", {}) | found
    except (RuntimeError, OSError, KeyError) as error:
        record = {"failed": f"{type(error).__name__}: {error}"}
    for path in step.after:
        remove(Path(path.format(s=place.shared, o=place.own)))
    return record | {"commit": place.commit, "date": datetime.date.today().isoformat()}


def renew(place: Place, pattern: str) -> None:
    """Removes from runs what later commands have put there, summaries of answers among it."""
    for listed, root in (("posteriors.json", "runs"), ("seeds.json", "seeds")):
        if not (place.shared / listed).exists():
            continue
        known = set(json.loads((place.shared / listed).read_text()))
        for folder in (place.shared / root).glob(f"paper/{pattern}"):
            for file in [one for one in folder.rglob("*") if one.is_file()]:
                if str(file.relative_to(place.shared / root)) not in known:
                    file.unlink()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(line: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


def rehearse(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what is not measured yet. Returns all that is in the file."""
    results = json.loads(options.out.read_text()) if options.out.exists() else {"labels": {}}
    of_label = results["labels"].setdefault(options.label, {})
    of_label |= {"machine": machine(), "command": shlex.join(["python", "benchmarks/full_size.py", *sys.argv[1:]])}
    of_scales = of_label.setdefault("scales", {})
    for scale in options.scales:
        place, records = Place(options.folder.absolute(), options.label, scale), of_scales.setdefault(str(scale), {})
        for name, step in STEPS.items():
            wanted = name in (options.steps or STEPS) and scale in (step.scales or (scale,))
            if not wanted or (name in records and name not in options.again):
                continue
            record = records[name] = perform(step, place, records)
            say(f"1/{scale} {name}: {record.get('failed') or summary(record)}")
            write(options.out, json.dumps(results, indent=1) + "\n")
        if not options.keep:
            remove(place.shared)
    return results


def summary(record: Mapping[str, Any]) -> str:
    return (
        f"{record['wall_s']:.1f} s wall, {record['cpu_s']:.1f} s processor, {record['memory_mb']:,.0f} MB, "
        f"{record['read_mb']:,.0f} MB read"
    )


def write(file: Path, text: str) -> None:
    """All or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(text)
    temporary.replace(file)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything is made; without it nothing is measured")
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="the result; with --page several")
    parser.add_argument("--scales", type=int, nargs="+", default=[100, 10, 1])
    parser.add_argument("--steps", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--again", nargs="+", default=[], choices=STEPS, metavar="STEP", help="measured once more")
    parser.add_argument("--label", default="before", help="of the code that is measured")
    parser.add_argument("--keep", action="store_true", help="leave WORK as it is in the end")
    parser.add_argument("--page", type=Path, help="write the results as Markdown")
    options = parser.parse_args(words)
    files, options.out = options.out, options.out[0]
    if options.folder:
        rehearse(options)
    if options.page:
        labels = {key: found for file in files for key, found in json.loads(file.read_text())["labels"].items()}
        write(options.page, page(labels, {name: {s.name: s.title for s in steps} for name, steps in GROUPS.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
