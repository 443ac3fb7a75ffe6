"""Evidence: runs in a form small enough to be committed, without nets, posteriors and images.

A folder of evidence has two files. `evidence.jsonl` holds a line for each run: its configuration, fidelity ledger, data
set, environment, the hash of its net and its learning curve. `ranks.npz` holds for each test, of a net or of several
fused, by a method at some Q, how many classes were guessed before the true one, a byte for each image. Tables, claims
and figures need no more. What tells of the machine and not of the run (folders, accounts, the cluster) is left out.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.parsing import parse
from vggrepro.errors import UserError
from vggrepro.evaluation.errors import Ranks
from vggrepro.files import replacing
from vggrepro.reporting.stored.runs import NetsTest, RunAtQ, StoredRun
from vggrepro.storage.environment import without_folders

RUNS, RANKS = "evidence.jsonl", "ranks.npz"

_LAST = np.iinfo(np.uint8).max
"""The rank that stands for all beyond it; the paper counts five guesses."""
_SECTIONS = ("model", "data", "train", "evaluation", "run")
_PLACES = {"data": {"root", "index", "boxes"}, "run": {"root"}}
"""Settings that name folders."""
_OF_DATA = ("splits", "rejected_splits", "classes", "fingerprint")
_CURVE = {"train": ("step", "loss", "learning_rate"), "validation": ("step", "top1_error", "top5_error")}
_MOST_RECORDS = 40
"""Of the training loss, in the learning curve of a run."""

Key = tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]


@dataclass(frozen=True)
class Evidence:
    """A folder of evidence."""

    folder: Path

    def ranks(self, asked: Sequence[RunAtQ], method: str) -> Ranks | None:
        """The ranks of a test; None where they are not kept. Raises UserError."""
        return self._tests.get(_key(asked, method))

    @cached_property
    def _tests(self) -> dict[Key, Ranks]:
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
    """A run of which evidence is kept; `path` is a folder that does not exist."""

    files: Mapping[str, Any] = field(compare=False)
    """What the JSON files of its run directory said, by name, and its learning curve."""
    evidence: Evidence

    @property
    def place(self) -> str:
        """In place of the run directory, for a reader."""
        return "evidence"

    def read_json(self, name: str) -> Any | None:
        """What a JSON file of the run said, as far as it is kept."""
        return self.files.get(name)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Its learning curve: records of one kind, the training loss not at every step."""
        return [record for record in self.files["metrics.jsonl"] if record["kind"] == kind]

    def has(self, method: str, Q: int) -> bool:
        """Whether its net was tested by a method at one Q, px."""
        return self.evidence.ranks([(self, (Q,))], method) is not None

    @property
    def finished(self) -> bool:
        """No others are kept."""
        return True


def write(runs: Sequence[StoredRun], results: Mapping[NetsTest, Ranks], folder: Path) -> None:
    """Keeps how the nets of some finished runs ranked the true classes, by test. Raises UserError."""
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--keep {folder}: two runs are called {twice[0]}; choose one of them with --runs")
    try:
        for name, content in contents(runs, results).items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"--keep {folder} cannot be written: {error.strerror}; choose another place") from None


def contents(runs: Sequence[StoredRun], results: Mapping[NetsTest, Ranks]) -> dict[str, bytes]:
    """The files of a folder of evidence, by name; of the same runs and answers always the same bytes."""
    tests: dict[str, dict[NetsTest, Ranks]] = {}
    for test, ranks in results.items():
        tests.setdefault(test[0][0][0].dataset["fingerprint"], {})[test] = ranks
    arrays: dict[str, NDArray[Any]] = {}
    for data, same in tests.items():
        labels = next(iter(same.values())).labels
        assert all(np.array_equal(one.labels, labels) for one in same.values()), "tests of different images"
        rows = [np.minimum(one.rank, _LAST).astype(np.uint8) for one in same.values()]
        arrays[f"{data[:12]}.labels"] = labels.astype(np.min_scalar_type(int(labels.max())))
        arrays[f"{data[:12]}.ranks"] = np.stack(rows)
        arrays[f"{data[:12]}.asked"] = np.array(json.dumps([_key(*test) for test in same]))
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    lines = [json.dumps(_line_of(run), sort_keys=True) for run in runs]
    return {RANKS: packed.getvalue(), RUNS: "".join(f"{line}\n" for line in lines).encode()}


def read(folder: Path) -> list[ArchivedRun]:
    """The runs of a folder of evidence. Raises UserError."""
    file, evidence, runs = folder / RUNS, Evidence(folder), []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"evidence {file} cannot be read ({error}); restore it") from None
    for number, line in enumerate(lines, 1):
        try:
            kept = json.loads(line)
            config, files = parse(kept.pop("config"), [], file), kept
            _ = files["metrics.jsonl"], files["final.json"]["weights"], files["dataset.json"]["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"evidence {file}, line {number}: no run of this version ({error}); restore it") from None
        runs.append(ArchivedRun(folder / config.run.experiment / config.name, config, files, evidence))
    return runs


def _key(asked: Sequence[RunAtQ], method: str) -> Key:
    return method, tuple((run.name, Q) for run, Q in asked)


def _line_of(run: StoredRun) -> dict[str, Any]:
    source = Path(run.dataset["source"]).name
    environment = run.read_json("environment.json") or {}
    if "command" in environment:
        environment |= {"command": without_folders(environment["command"])}
    return {
        "config": run.config.model_dump(mode="json", include=set(_SECTIONS), exclude=_PLACES),
        "final.json": run.read_json("final.json"),
        "dataset.json": {"source": source} | {key: run.dataset[key] for key in _OF_DATA if key in run.dataset},
        "ledger.json": [vars(one) for one in run.departures],
        "environment.json": environment,
        "metrics.jsonl": [*_curve(run, "train"), *_curve(run, "validation")],
    }


def _curve(run: StoredRun, kind: str) -> list[dict[str, Any]]:
    records = run.records(kind)
    thinned = records[:: -(-len(records) // _MOST_RECORDS) or 1]
    return [{"kind": kind} | {key: _short(record[key]) for key in _CURVE[kind]} for record in thinned]


def _short(number: Any) -> Any:
    """Six digits are enough for a curve."""
    return float(f"{number:.6g}") if isinstance(number, float) else number
