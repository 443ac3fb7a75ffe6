"""Evidence: runs in a form small enough to commit, without nets, posteriors or images.

An evidence folder has two files. `evidence.jsonl` has a line per run: its configuration, fidelity ledger, data set,
environment, weight hash and learning curve. `ranks.npz` stores, for each test of a net or of fused nets, the number of
classes ranked above the true one, a byte per image. Tables, claims and figures need no more. Facts about the machine
rather than the run (folders, accounts, the cluster) are left out.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.parsing import differences, parse
from vggrepro.errors import UserError
from vggrepro.evaluation.errors import Ranks
from vggrepro.files import replacing
from vggrepro.reporting.stored.runs import NetsTest, RunAtQ, StoredRun, in_the_papers_order
from vggrepro.storage.environment import without_folders

RUNS, RANKS = "evidence.jsonl", "ranks.npz"

_MAX_RANK = np.iinfo(np.uint8).max
"""Ranks are clipped to this value; the paper counts five guesses."""
_SECTIONS = ("model", "data", "train", "evaluation", "run")
_PLACES = {"data": {"root", "index", "boxes"}, "run": {"root"}}
"""Settings that name folders."""
_DATASET_KEYS = ("splits", "rejected_splits", "classes", "fingerprint")
_CURVE_KEYS = {"train": ("step", "loss", "learning_rate"), "validation": ("step", "top1_error", "top5_error")}
_MAX_RECORDS = 40
"""Limit on the records of each kind in a learning curve."""

Key = tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]


@dataclass(frozen=True)
class Evidence:
    """Ranks stored in an evidence folder, read on first use."""

    folder: Path

    def ranks(self, runs_at_Q: Sequence[RunAtQ], method: str) -> Ranks | None:
        """Returns the ranks of a test, or None if they are not stored. Raises UserError."""
        return self.tests.get(_test_key(runs_at_Q, method))

    @cached_property
    def tests(self) -> dict[Key, Ranks]:
        """All stored ranks by method and nets. Raises UserError."""
        tests: dict[Key, Ranks] = {}
        file = self.folder / RANKS
        try:
            with np.load(file, allow_pickle=False) as content:
                for name in (name for name in content.files if name.endswith(".asked")):
                    data = name.removesuffix(".asked")
                    labels, ranks = content[f"{data}.labels"], content[f"{data}.ranks"]
                    for (method, nets), row in zip(json.loads(str(content[name])), ranks, strict=True):
                        tests[method, tuple((net, tuple(Q)) for net, Q in nets)] = Ranks(labels, row)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"evidence {file} cannot be read ({error}); restore it") from None
        return tests


@dataclass(frozen=True)
class ArchivedRun(StoredRun):
    """A run that is stored as evidence only; its `path` does not exist."""

    files: Mapping[str, Any] = field(compare=False)
    """Contents of the JSON files of its run directory by name, and its learning curve as `metrics.jsonl`."""
    evidence: Evidence

    @property
    def place(self) -> str:
        """The word "evidence", which a report prints in place of a run directory."""
        return "evidence"

    def read_json(self, name: str) -> Any | None:
        """Returns the stored part of a JSON file of the run, or None."""
        return self.files.get(name)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Returns the records of one kind in the learning curve, which is thinned to `_MAX_RECORDS`."""
        return [record for record in self.files["metrics.jsonl"] if record["kind"] == kind]

    def has(self, method: str, Q: int) -> bool:
        """Whether the ranks of a test by a method at a single Q, px, are stored."""
        return self.evidence.ranks([(self, (Q,))], method) is not None

    @property
    def finished(self) -> bool:
        """Always true: evidence has finished runs only."""
        return True


def add(runs: Sequence[StoredRun], results: Mapping[NetsTest, Ranks], folder: Path) -> None:
    """Adds finished runs, and the ranks of the true classes in their tests, to a new or existing evidence folder.

    Raises UserError, with the folder unchanged, if runs or tests contradict each other: two nets of one name, seeds of
    a stage with different recipes or images, or a test of a stored net with other ranks.
    """
    stored = read(folder) if (folder / RUNS).exists() else []
    remedy = f"to replace it, remove its line from {folder / RUNS}; to have both, choose another folder"
    by_name: dict[str, StoredRun] = {}
    for run in runs:
        if by_name.setdefault(run.name, run) is not run:
            raise UserError(f"--keep {folder}: two runs are called {run.name}; choose one of them with --runs")
    for run in stored:
        if by_name.setdefault(run.name, run).weights != run.weights:
            raise UserError(f"--keep {folder}: {run.name} is another net there; {remedy}")
    _require_equal_recipes(by_name.values(), folder)
    merged = dict(results)
    for (method, nets), ranks in (stored[0].evidence.tests if stored else {}).items():
        if {name for name, _ in nets} <= {run.name for run in stored}:
            test = tuple((by_name[name], Q) for name, Q in nets), method
            if not _equal(merged.setdefault(test, ranks), ranks):
                names = " + ".join(f"{name} at Q = {', '.join(map(str, Q))}" for name, Q in nets)
                raise UserError(f"--keep {folder}: the {method} test of {names} has other results there; {remedy}")
    try:
        for name, content in contents(list(by_name.values()), merged).items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"--keep {folder} cannot be written: {error.strerror}; choose another place") from None


def _equal(first: Ranks, second: Ranks) -> bool:
    clipped = [np.minimum(ranks.rank, _MAX_RANK) for ranks in (first, second)]
    return np.array_equal(first.labels, second.labels) and np.array_equal(*clipped)


def _require_equal_recipes(runs: Iterable[StoredRun], folder: Path) -> None:
    """Raises UserError if runs of a stage, which differ in the seed, differ in more than that."""
    stages: dict[str, StoredRun] = {}
    for run in runs:
        first = stages.setdefault(run.name.removesuffix(f"-seed{run.config.run.seed}"), run)
        recipes = [json.loads(other.recipe_without_init) for other in (first, run)]
        differing = [key for key, *_ in differences(*recipes)]
        differing += ["run.parent"] * (bool(first.config.run.parent) != bool(run.config.run.parent))
        differing += ["images"] * (first.dataset["fingerprint"] != run.dataset["fingerprint"])
        if differing:
            raise UserError(
                f"--keep {folder}: {run.name} and {first.name} are seeds of one stage, but differ in "
                f"{', '.join(differing)}; choose another folder for one of them"
            )


def contents(runs: Sequence[StoredRun], results: Mapping[NetsTest, Ranks]) -> dict[str, bytes]:
    """Returns the files of an evidence folder by name. The same runs and results, in any order, give the same bytes."""
    tests: dict[str, dict[NetsTest, Ranks]] = {}
    for test, ranks in sorted(results.items(), key=lambda item: _test_key(*item[0])):
        tests.setdefault(test[0][0][0].dataset["fingerprint"], {})[test] = ranks
    arrays: dict[str, NDArray[Any]] = {}
    for data, tests_of_data in sorted(tests.items()):
        labels = next(iter(tests_of_data.values())).labels
        assert all(np.array_equal(ranks.labels, labels) for ranks in tests_of_data.values()), "tests of other images"
        rows = [np.minimum(ranks.rank, _MAX_RANK).astype(np.uint8) for ranks in tests_of_data.values()]
        arrays[f"{data[:12]}.labels"] = labels.astype(np.min_scalar_type(int(labels.max())))
        arrays[f"{data[:12]}.ranks"] = np.stack(rows)
        arrays[f"{data[:12]}.asked"] = np.array(json.dumps([_test_key(*test) for test in tests_of_data]))
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)  # type: ignore[arg-type]
    lines = [json.dumps(_serialise(run), sort_keys=True) for run in sorted(runs, key=in_the_papers_order)]
    return {RANKS: archive.getvalue(), RUNS: "".join(f"{line}\n" for line in lines).encode()}


def read(folder: Path) -> list[ArchivedRun]:
    """Returns the runs of an evidence folder. Raises UserError."""
    file, evidence, runs = folder / RUNS, Evidence(folder), []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"evidence {file} cannot be read ({error}); restore it") from None
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            config, files = parse(entry.pop("config"), [], file), entry
            _ = files["metrics.jsonl"], files["final.json"]["weights"], files["dataset.json"]["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"evidence {file}, line {number} is not a run of this version ({error}); restore it"
            ) from None
        runs.append(ArchivedRun(folder / config.run.experiment / config.name, config, files, evidence))
    return runs


def _test_key(runs_at_Q: Sequence[RunAtQ], method: str) -> Key:
    return method, tuple((run.name, Q) for run, Q in runs_at_Q)


def _serialise(run: StoredRun) -> dict[str, Any]:
    source = Path(run.dataset["source"]).name
    environment = run.read_json("environment.json") or {}
    if "command" in environment:
        environment |= {"command": without_folders(environment["command"])}
    return {
        "config": run.config.model_dump(mode="json", include=set(_SECTIONS), exclude=_PLACES),
        "final.json": run.read_json("final.json"),
        "dataset.json": {"source": source} | {key: run.dataset[key] for key in _DATASET_KEYS if key in run.dataset},
        "ledger.json": [vars(departure) for departure in run.departures],
        "environment.json": environment,
        "metrics.jsonl": [*_curve(run, "train"), *_curve(run, "validation")],
    }


def _curve(run: StoredRun, kind: str) -> list[dict[str, Any]]:
    records = run.records(kind)
    thinned = records[:: -(-len(records) // _MAX_RECORDS) or 1]
    return [{"kind": kind} | {key: _round(record[key]) for key in _CURVE_KEYS[kind]} for record in thinned]


def _round(number: Any) -> Any:
    """Rounds a float to six digits, which are enough for a curve."""
    return float(f"{number:.6g}") if isinstance(number, float) else number
