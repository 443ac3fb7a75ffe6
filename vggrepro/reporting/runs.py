"""The runs on disk, as reports see them: found by folder, read once, and grouped so that unlike ones never mix."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vggrepro.config.recipes import load_resolved
from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.evaluation.measure import Scored, methods_of, protocol, scored
from vggrepro.paper import Scale, facts, value
from vggrepro.progress import echo
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.ledger import Departure, read_ledger
from vggrepro.storage.status import final_file, known_weights

Recipe = tuple[str, Scale]
"""A net and the paper's S that it is trained at."""
Key = TypeVar("Key")


@dataclass(frozen=True)
class StoredRun:
    """One run directory."""

    path: Path
    config: Config

    @property
    def directory(self) -> RunDirectory:
        """Its files."""
        return RunDirectory(self.path)

    @property
    def name(self) -> str:
        """`experiment:stage`, by which commands take it."""
        return f"{self.config.run.experiment}:{self.config.name}"

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """What `dataset.json` says; of a net that was imported, what its posteriors say; empty before either."""
        return self.directory.read_json("dataset.json") or self._tested_on()

    def _tested_on(self) -> dict[str, Any]:
        """The data set of the newest stored posteriors of the final net."""
        files = (self.path / "posteriors").glob(f"[!.]*-{(self.weights or '')[:12]}-*.npz")
        for file in sorted(files, key=lambda one: one.stat().st_mtime, reverse=True):
            with np.load(file, allow_pickle=False) as content:
                fingerprint = json.loads(str(content["protocol"]))["data"]
                val = len(content["labels"])
            return {"source": "tested images", "fingerprint": fingerprint, "splits": {"val": val}}
        return {}

    @cached_property
    def departures(self) -> list[Departure]:
        """The fidelity ledger."""
        return read_ledger(self.directory) or []

    @cached_property
    def weights(self) -> str | None:
        """Hash of the final net; None while it is not evaluated."""
        return known_weights(self.directory)

    @cached_property
    def step(self) -> int:
        """Iterations that `metrics.jsonl` knows of."""
        return max((record["step"] for record in self.directory.records("train")), default=0)

    @cached_property
    def finished(self) -> bool:
        """Whether the final net is there."""
        return final_file(self.path).exists()

    def Q_of(self, table: int) -> tuple[int, ...]:
        """The run's own test scales for a table, px: one for Table 3, several for the others."""
        return self.config.single_Q if table == 3 else self.config.multi_Q

    def scored(self, Q: tuple[int, ...], method: str) -> Scored | None:
        """Stored posteriors of the final net, averaged over Q; None while some are missing. Raises UserError."""
        if self.weights is None or not self.dataset:
            return None
        # the folder is not made by looking into it
        found = scored(self.config, self.weights, self.dataset["fingerprint"], self.path / "posteriors", Q, method)
        expected = (self.usable_val, self.config.model.classes)
        if found and found.values.shape != expected:
            raise UserError(
                f"{method} posteriors in {self.path / 'posteriors'} are of {found.values.shape} images and "
                f"classes, the run's data set has {expected}: another index or class list; remove it and evaluate again"
            )
        return found

    @property
    def usable_val(self) -> int:
        """Validation images that can be read."""
        return self.dataset["splits"]["val"] - self.dataset.get("rejected_splits", {}).get("val", 0)

    def what_is_missing(self, Q: tuple[int, ...], method: str) -> str:
        """Why :meth:`scored` gives nothing, for a reader."""
        if not self.finished:
            return f"{self.name} is at step {self.step:,} of {self.config.train.iterations:,}"
        if self.weights is None or not self.dataset:
            return f"{self.name} is not evaluated yet"
        weights, data = self.weights, self.dataset["fingerprint"]
        missing = [
            f"{part} at Q = {side}"
            for part in methods_of(method)
            for side in Q
            if not protocol(self.config, weights, data, side, part).file(self.path / "posteriors").exists()
        ]
        return f"{self.name} lacks {', '.join(missing)}"

    def what_boxes_lack(self, Q: tuple[int, ...], method: str) -> str:
        """Why boxes that a table needs are not there, for a reader."""
        if not self.finished:
            return f"{self.name} is at step {self.step:,} of {self.config.train.iterations:,}"
        sides = ",".join(map(str, Q))
        missing = f"{self.name} lacks {method} boxes at Q = {sides.replace(',', ', ')}"
        if method == "centre":  # which only the stage itself is tested by
            return f"{missing}; train its stage again, which tests what is trained"
        return f"{missing}; run `vggrepro localise {self.path} --scales {sides}`"

    @property
    def strangers(self) -> list[str]:
        """Stored posteriors that are not of this run's final net and index, and therefore not used."""
        if self.weights is None or not self.dataset:
            return []
        own = f"-{self.weights[:12]}-{self.dataset['fingerprint'][:12]}"
        found = sorted((self.path / "posteriors").glob("*.npz"))
        return [file.name for file in found if not file.name.startswith(".") and own not in file.name]

    @property
    def mlflow_run(self) -> str | None:
        """Id of its MLflow run; None where it is not mirrored."""
        return (self.directory.read_json("mlflow.json") or {}).get("run_id") or None

    @cached_property
    def variant(self) -> str:
        """Equal for runs that differ in nothing but the seed."""
        return json.dumps(self.config.trajectory() | {"run": {}}, sort_keys=True)

    @property
    def boxes_fingerprint(self) -> str:
        """Of the true boxes that a net that predicts boxes was trained and tested on; empty where nothing says so."""
        return self.dataset.get("boxes", {}).get("fingerprint", "")

    @property
    def S(self) -> Scale:
        """The paper's S that this run stands for."""
        return self.config.papers_S

    @property
    def net(self) -> str:
        """The column of Table 1, or the net's own name, with what makes it another net than the paper's."""
        model = self.config.model
        own = model.layers is not None and model.net in facts().architectures
        others = {"own layers": own, "batch norm": model.batch_norm, "no FC layers": not model.fully_connected}
        return model.net + "".join(f" ({name})" for name, true in others.items() if true)


@dataclass(frozen=True)
class Setting:
    """What runs must share for their errors to stand in one table: experiment, images, classes and geometry."""

    experiment: str
    fingerprint: str
    source: str = field(compare=False)
    """Where they lay for the first of the runs."""
    classes: int
    val_images: int
    crop: int
    width: float

    @property
    def is_the_papers(self) -> bool:
        """1,000 classes, 50,000 validation images, 224 px and full width."""
        own = (self.classes, self.val_images, self.crop, self.width)
        return own == (value("classes"), value("val_images"), value("crop"), 1.0)

    @property
    def title(self) -> str:
        """For a heading."""
        width = "" if self.width == 1 else f", width x {self.width:g}"
        return (
            f"{self.experiment}, on {Path(self.source).name} ({self.fingerprint[:8]}): {self.classes:,} classes, "
            f"{self.val_images:,} validation images, crop {self.crop} px{width}"
        )


def setting_of(run: StoredRun) -> Setting:
    """The setting of a run that has begun."""
    data, model = run.dataset, run.config.model
    return Setting(
        run.config.run.experiment,
        data["fingerprint"],
        data["source"],
        model.classes,
        data["splits"]["val"],
        model.crop,
        model.width,
    )


def recipes_of(runs: Iterable[StoredRun]) -> dict[Recipe, list[StoredRun]]:
    """For each (net, the paper's S that it stands for) the runs that differ in nothing but the seed, in its order.

    Where several variants were trained, the one with the fewest departures from the paper stands for the recipe.
    """
    return chosen_by(lambda run: (run.net, run.S), runs)


def chosen_by(key: Callable[[StoredRun], Key], runs: Iterable[StoredRun]) -> dict[Key, list[StoredRun]]:
    """As :func:`recipes_of`, for recipes of any kind."""
    variants: dict[Key, dict[str, list[StoredRun]]] = {}
    for run in runs:
        variants.setdefault(key(run), {}).setdefault(run.variant, []).append(run)
    chosen: dict[Key, list[StoredRun]] = {}
    for recipe, found in variants.items():
        same = min(found.values(), key=lambda runs: len(runs[0].departures))
        chosen[recipe] = [
            run for n, run in enumerate(same) if run.config.run.seed not in {one.config.run.seed for one in same[:n]}
        ]
    return chosen


def departures_of(runs: Iterable[StoredRun]) -> int:
    """In how many settings some runs together depart from the paper."""
    return len({str(one) for run in runs for one in run.departures})


def by_output(runs: Iterable[StoredRun]) -> tuple[list[StoredRun], list[StoredRun]]:
    """(the runs of nets that predict classes, those of nets that predict boxes)."""
    runs = list(runs)
    return [run for run in runs if not run.config.localisation], [run for run in runs if run.config.localisation]


def find_runs(places: Iterable[Path], experiments: Sequence[str] = ()) -> list[StoredRun]:
    """The runs in some folders: a run directory, an experiment's folder or the folder of all, in the paper's order.

    Raises UserError for a folder that does not exist or an experiment without runs.
    """
    found: dict[Path, StoredRun] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"--runs {place} is not a folder; name a run, an experiment or the folder of all runs")
        for depth in ("", "*/", "*/*/"):
            for file in sorted(place.glob(f"{depth}config.yaml")):
                if file.parent.resolve() in found:
                    continue
                try:
                    found[file.parent.resolve()] = StoredRun(file.parent, load_resolved(file))
                except UserError as error:  # of another version, say: the others can still be reported
                    if not depth:
                        raise
                    echo(f"left out: {error}")
    runs = list(found.values())
    for experiment in experiments:
        if not any(run.config.run.experiment == experiment for run in runs):
            known = ", ".join(sorted({run.config.run.experiment for run in runs})) or "none"
            raise UserError(f"--experiment {experiment} has no runs there; known: {known}")
    chosen = [run for run in runs if not experiments or run.config.run.experiment in experiments]
    return sorted(chosen, key=_order)


def resolve(names: Sequence[str], places: Sequence[Path]) -> list[StoredRun]:
    """Runs by directory, `experiment:stage`, stage name, or MLflow run id (whole, or its first 8 digits or more).

    Raises UserError for a name that fits no run, or several.
    """
    known: list[StoredRun] | None = None
    chosen = []
    for name in names:
        folder = Path(name)
        if (folder / "config.yaml").exists():
            chosen.append(StoredRun(folder, load_resolved(folder / "config.yaml")))
            continue
        if known is None:
            known = find_runs([place for place in places if place.is_dir()])
        fits = [run for run in known if name in (run.name, run.config.name)] or [
            run for run in known if len(name) >= 8 and (run.mlflow_run or "").startswith(name)
        ]
        if len(fits) != 1:
            listed = ", ".join(run.name for run in fits or known) or "none"
            where = ", ".join(map(str, places))
            problem = (
                f"is {len(fits)} runs ({listed}); say experiment:stage"
                if fits
                else (f"is no run directory, stage, experiment:stage or MLflow run id under {where}; known: {listed}")
            )
            raise UserError(f"run {name} {problem}")
        chosen += fits
    return chosen


def _order(run: StoredRun) -> tuple[Any, ...]:
    columns = list(facts().architectures)
    own, net, data = run.config.run, run.config.model.net, run.config.data
    at = columns.index(net) if net in columns else len(columns)
    return own.experiment, at, net, isinstance(data.S, tuple), data.S_range, own.seed, run.name
