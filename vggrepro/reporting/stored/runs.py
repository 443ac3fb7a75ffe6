"""Runs as reports read them: each file once, grouped so that incomparable runs never mix."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from vggrepro.config.settings import Config, Model
from vggrepro.errors import UserError
from vggrepro.evaluation.box_store import FoundKey
from vggrepro.evaluation.measure import NetResults, methods_of
from vggrepro.evaluation.posteriors import PosteriorsKey
from vggrepro.evaluation.predictions import StoredTest
from vggrepro.evaluation.store import read_arrays
from vggrepro.evaluation.transfers import SplitKey
from vggrepro.paper import Scale, facts, value
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.ledger import Departure, departures_in
from vggrepro.storage.status import final_file

Recipe = tuple[str, Scale]
"""A net and the paper's training scale S."""
Key = TypeVar("Key")


@dataclass(frozen=True)
class StoredRun:
    """A run directory, read on demand."""

    path: Path
    config: Config = field(compare=False)

    @property
    def run_directory(self) -> RunDirectory:
        """Access to the files of the run."""
        return RunDirectory(self.path)

    @property
    def place(self) -> str:
        """Path of the run directory, as reports print it."""
        return str(self.path)

    def read_json(self, name: str) -> Any | None:
        """Returns the content of a JSON file of the run, or None without the file. Raises UserError."""
        return self.run_directory.read_json(name)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Returns the records of one kind in `metrics.jsonl`."""
        return self.run_directory.records(kind)

    @property
    def name(self) -> str:
        """`experiment:stage`, which commands accept."""
        return f"{self.config.run.experiment}:{self.config.name}"

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """Content of `dataset.json`; for an imported net, what its posteriors record; empty before either exists."""
        return self.read_json("dataset.json") or self._tested_on()

    def _tested_on(self) -> dict[str, Any]:
        """Returns the data set of the newest stored posteriors of the final net."""
        run = self.run_directory
        keys = [key for key, _ in PosteriorsKey.listed(run) if key.weights == self.weights]
        if newest := max(keys, key=lambda key: key.file(run).stat().st_mtime, default=None):
            val = len(read_arrays(newest.file(run), "labels")["labels"])
            return {"source": "tested images", "fingerprint": newest.data, "splits": {"val": val}}
        return {}

    @cached_property
    def departures(self) -> list[Departure]:
        """The fidelity ledger."""
        return departures_in(self.read_json("ledger.json") or [])

    @cached_property
    def weights(self) -> str | None:
        """Hash of the final net; None until it is evaluated."""
        return (self.read_json("final.json") or {}).get("weights")

    @cached_property
    def step(self) -> int:
        """Last iteration recorded in `metrics.jsonl`."""
        return (self.run_directory.newest("train") or {"step": 0})["step"]

    @cached_property
    def finished(self) -> bool:
        """Whether the final net is saved."""
        return final_file(self.path).exists()

    def Q_of(self, table: int) -> tuple[int, ...]:
        """Returns the test scales the run configures for a table, px: one for Table 3, several for the others."""
        return self.config.single_Q if table == 3 else self.config.multi_Q

    @cached_property
    def results(self) -> NetResults | None:
        """Stored results of the final net on its data set; None until it is tested."""
        if self.weights is None or not self.dataset:
            return None
        data, testing = self.dataset["fingerprint"], self.config.evaluation
        return NetResults(self.run_directory, self.weights, data, testing, self.boxes_fingerprint)

    def test(self, Q: tuple[int, ...], method: str) -> StoredTest | None:
        """Returns the stored posteriors whose mean is a test of the final net; None if some are missing.

        Raises UserError if they were computed on another index or class list.
        """
        found = self.results.test(method, Q) if self.results else None
        if found is None:
            return None
        expected = self.usable_val, self.config.model.classes
        if other_shapes := {header.shape for header in found.headers} - {expected}:
            raise UserError(
                f"{method} posteriors in {self.run_directory.posteriors} have shape {max(other_shapes)}, but the run's "
                f"data set has {expected} images and classes; remove them and evaluate again"
            )
        return found

    @property
    def usable_val(self) -> int:
        """Number of validation images that can be read."""
        return self.dataset["splits"]["val"] - self.dataset.get("rejected_splits", {}).get("val", 0)

    @property
    def _unfinished(self) -> str:
        """The progress of an unfinished run in words; empty once it is finished."""
        return "" if self.finished else f"{self.name} is at step {self.step:,} of {self.config.train.iterations:,}"

    def missing_tests(self, Q: tuple[int, ...], method: str) -> str:
        """Returns the reason, in words, that :meth:`test` gives None."""
        if self._unfinished:
            return self._unfinished
        if self.results is None:
            return f"{self.name} is not evaluated yet"
        missing = [f"{part} at Q = {side}" for part in methods_of(method) for side in Q if not self.has(part, side)]
        return f"{self.name} lacks {', '.join(missing)}"

    def has(self, method: str, Q: int) -> bool:
        """Whether posteriors of the final net by a method at a single Q, px, are stored."""
        return self.results is not None and not self.results.lacking([(method, (Q,))])

    def missing_boxes(self, Q: tuple[int, ...], method: str) -> str:
        """Returns the reason, in words, that boxes a table needs are not stored."""
        if self._unfinished:
            return self._unfinished
        sides = ",".join(map(str, Q))
        missing = f"{self.name} lacks {method} boxes at Q = {sides.replace(',', ', ')}"
        if method == "centre":  # only the stage itself runs this test
            return f"{missing}; train its stage again, which tests what is trained"
        return f"{missing}; run `vggrepro localise {self.path} --scales {sides}`"

    @property
    def unused_results(self) -> list[str]:
        """Names of stored results of another net or another index, which reports do not use."""
        if self.results is None:
            return []
        run, net, data = self.run_directory, self.results.weights, self.results.data
        found = [file for file in run.posteriors.glob("*.npz") if f"-{net[:12]}-{data[:12]}" not in file.name]
        found += [file for file in run.features.glob("*.npz") if f"-{net[:12]}-" not in file.name]
        for split, _ in SplitKey.listed(run):
            if split.test.nets[0].weights != net:
                found += [key.file(run) for key in split.test.keys if key.exists(run)]
        for boxes, _ in FoundKey.listed(run):
            if (boxes.parts[0].weights, boxes.parts[0].data) != (net, data):
                files = [boxes.file(run), *(part.file(run) for part in boxes.parts)]
                found += [file for file in files if file.exists()]
        return sorted({file.name for file in found if not file.name.startswith(".")})

    @property
    def mlflow_run(self) -> str | None:
        """Id of its MLflow run; None if it is not mirrored."""
        return (self.read_json("mlflow.json") or {}).get("run_id") or None

    @cached_property
    def variant(self) -> str:
        """Equal for runs that differ only in the seed."""
        return json.dumps([self.recipe_without_init, bool(self.config.run.parent)])

    @cached_property
    def recipe_without_init(self) -> str:
        """Equal for runs that are trained and tested alike, apart from their seed and first weights."""
        tested = {"flip": self.config.evaluation.flip, "precision": self.config.evaluation.precision}
        return json.dumps(self.config.trajectory() | {"run": {}, "evaluation": tested}, sort_keys=True)

    @property
    def boxes_fingerprint(self) -> str:
        """Fingerprint of the true boxes that a localisation net was trained and tested on; empty if unknown."""
        return self.dataset.get("boxes", {}).get("fingerprint", "")

    @property
    def S(self) -> Scale:
        """The paper's S that the run reproduces."""
        return self.config.papers_S

    @property
    def net(self) -> str:
        """Column of Table 1, or the name of a custom net, with its differences from the paper's in brackets."""
        model = self.config.model
        custom = model.layers is not None and model.net in facts().architectures
        differences = {"own layers": custom, "batch norm": model.batch_norm, "no FC layers": not model.fully_connected}
        return model.net + "".join(f" ({name})" for name, applies in differences.items() if applies)


RunAtQ = tuple[StoredRun, tuple[int, ...]]
"""A run and the Q at which its net is tested, px. Posteriors are averaged over the Q, boxes are pooled."""
NetsTest = tuple[tuple[RunAtQ, ...], str]
"""Nets, each with its Q, and the test method. Several nets are fused or pooled."""


@dataclass(frozen=True)
class Setting:
    """Experiment, images, classes and geometry, which runs in a table must share."""

    experiment: str
    fingerprint: str
    source: str = field(compare=False)
    """Path of the images in the first run."""
    classes: int
    val_images: int
    geometry: str
    """`config.settings.Model.geometry`."""

    @property
    def is_the_papers(self) -> bool:
        """Whether the setting has 1,000 classes, 50,000 validation images, 224 px, five blocks and full width."""
        papers = (value("classes"), value("val_images"), Model(net="A").geometry)
        return (self.classes, self.val_images, self.geometry) == papers

    @property
    def title(self) -> str:
        """Heading of the group in a report."""
        few = " (top-5 errors are 0)" if self.classes <= 5 else ""
        return (
            f"{self.experiment}, on {Path(self.source).name} ({self.fingerprint[:8]}): {self.classes:,} classes{few}, "
            f"{self.val_images:,} validation images, {self.geometry}"
        )


def setting_of(run: StoredRun) -> Setting:
    """Returns the setting of a run that has begun."""
    data, model, experiment = run.dataset, run.config.model, run.config.run.experiment
    images = data["splits"]["val"]
    return Setting(experiment, data["fingerprint"], data["source"], model.classes, images, model.geometry)


def in_the_papers_order(run: StoredRun) -> tuple[Any, ...]:
    """Sort key of runs: experiment, column of Table 1, S, seed."""
    columns = list(facts().architectures)
    settings, net, data = run.config.run, run.config.model.net, run.config.data
    column = columns.index(net) if net in columns else len(columns)
    return settings.experiment, column, net, isinstance(data.S, tuple), data.S_range, settings.seed, run.name


def recipe_of(run: StoredRun) -> Recipe:
    """Returns the net and S of a run."""
    return run.net, run.S


def chosen_by(key: Callable[[StoredRun], Key], runs: Iterable[StoredRun]) -> dict[Key, list[StoredRun]]:
    """Returns the runs of each recipe (the value of `key`), which differ only in the seed.

    If several variants were trained, the one with the fewest departures from the paper represents the recipe.
    """
    return {
        recipe: min(variants, key=lambda runs: len(runs[0].departures))
        for recipe, variants in variants_by(key, runs).items()
    }


def variants_by(key: Callable[[StoredRun], Key], runs: Iterable[StoredRun]) -> dict[Key, list[list[StoredRun]]]:
    """Returns the variants of each recipe: lists of runs that differ only in the seed, one run per seed."""
    found: dict[Key, dict[str, dict[int, StoredRun]]] = {}
    for run in runs:
        found.setdefault(key(run), {}).setdefault(run.variant, {}).setdefault(run.config.run.seed, run)
    return {recipe: [list(same.values()) for same in variants.values()] for recipe, variants in found.items()}


def departures_of(runs: Iterable[StoredRun]) -> int:
    """Returns the number of settings in which some runs together depart from the paper."""
    return len({str(departure) for run in runs for departure in run.departures})
