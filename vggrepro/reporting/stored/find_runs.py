"""Which runs a report is of: all in some folders, or those that are named."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vggrepro.config.recipes import load_resolved
from vggrepro.errors import UserError
from vggrepro.paper import facts
from vggrepro.progress import warn
from vggrepro.reporting.stored import evidence
from vggrepro.reporting.stored.runs import StoredRun


def find_runs(places: Iterable[Path], experiments: Sequence[str] = ()) -> list[StoredRun]:
    """The runs in some folders: a run directory, an experiment's folder or the folder of all, in the paper's order.

    Runs that are kept as evidence there are among them, unless they are there themselves. Raises UserError for a folder
    that does not exist or an experiment without runs.
    """
    found: dict[Path, StoredRun] = {}
    kept: dict[Path, list[evidence.ArchivedRun]] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"--runs {place} is not a folder; name a run, an experiment or the folder of all runs")
        for depth in ("", "*/", "*/*/"):
            for file in sorted(place.glob(f"{depth}{evidence.RUNS}")):
                if file.parent.resolve() not in kept:
                    kept[file.parent.resolve()] = evidence.read(file.parent)
            for file in sorted(place.glob(f"{depth}config.yaml")):
                if file.parent.resolve() in found:
                    continue
                try:
                    found[file.parent.resolve()] = StoredRun(file.parent, load_resolved(file))
                except UserError as error:  # of another version, say: the others can still be reported
                    if not depth:
                        raise
                    warn(f"left out: {error}")
    runs = list(found.values())
    here = {(run.name, run.weights) for run in runs}
    runs += [run for folder in kept.values() for run in folder if (run.name, run.weights) not in here]
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
