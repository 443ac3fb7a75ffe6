"""The runs of a report: all in some folders, or the named ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vggrepro.config.recipes import load_resolved
from vggrepro.errors import UserError
from vggrepro.progress import warn
from vggrepro.reporting.stored import evidence
from vggrepro.reporting.stored.runs import StoredRun, in_the_papers_order


def find_runs(folders: Iterable[Path], experiments: Sequence[str] = ()) -> list[StoredRun]:
    """Returns the runs in some folders, in the paper's order.

    A folder may be a run directory, an experiment or the folder of all experiments. Runs stored as evidence are
    included unless their run directory is found as well. Raises UserError for a folder that does not exist or an
    experiment without runs.
    """
    found: dict[Path, StoredRun] = {}
    archived: dict[Path, list[evidence.ArchivedRun]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--runs {folder} is not a folder; name a run, an experiment or the folder of all runs")
        for depth in ("", "*/", "*/*/"):
            for file in sorted(folder.glob(f"{depth}{evidence.RUNS}")):
                if file.parent.resolve() not in archived:
                    archived[file.parent.resolve()] = evidence.read(file.parent)
            for file in sorted(folder.glob(f"{depth}config.yaml")):
                if file.parent.resolve() in found:
                    continue
                try:
                    found[file.parent.resolve()] = StoredRun(file.parent, load_resolved(file))
                except UserError as error:  # for example of another version; the others can still be reported
                    if not depth:
                        raise
                    warn(f"left out: {error}")
    runs = list(found.values())
    complete = {(run.name, run.weights) for run in runs}
    runs += [run for stored in archived.values() for run in stored if (run.name, run.weights) not in complete]
    for experiment in experiments:
        if not any(run.config.run.experiment == experiment for run in runs):
            known = ", ".join(sorted({run.config.run.experiment for run in runs})) or "none"
            raise UserError(f"--experiment {experiment} has no runs there; known: {known}")
    chosen = [run for run in runs if not experiments or run.config.run.experiment in experiments]
    return sorted(chosen, key=in_the_papers_order)


def resolve(names: Sequence[str], folders: Sequence[Path]) -> list[StoredRun]:
    """Returns runs by directory, `experiment:stage`, stage or MLflow run id (8 digits or more). Raises UserError."""
    known: list[StoredRun] | None = None
    chosen = []
    for name in names:
        run_folder = Path(name)
        if (run_folder / "config.yaml").exists():
            chosen.append(StoredRun(run_folder, load_resolved(run_folder / "config.yaml")))
            continue
        if known is None:
            known = find_runs([folder for folder in folders if folder.is_dir()])
        matches = [run for run in known if name in (run.name, run.config.name)] or [
            run for run in known if len(name) >= 8 and (run.mlflow_run or "").startswith(name)
        ]
        if len(matches) > 1:
            listed = ", ".join(run.name for run in matches)
            raise UserError(f"run {name} matches {len(matches)} runs ({listed}); name one as experiment:stage")
        if not matches:
            raise UserError(
                f"run {name} is not a run directory, stage, experiment:stage or MLflow run id under "
                f"{', '.join(map(str, folders))}; known: {', '.join(run.name for run in known) or 'none'}"
            )
        chosen += matches
    return chosen
