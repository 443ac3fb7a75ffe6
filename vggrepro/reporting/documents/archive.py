"""Archives the evidence of runs in a folder, with its tables and figures."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from vggrepro.errors import UserError
from vggrepro.evaluation.errors import Ranks
from vggrepro.evaluation.measure import COMBINED
from vggrepro.paper import value
from vggrepro.progress import warn
from vggrepro.reporting.documents import figures
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.stored import evidence
from vggrepro.reporting.stored.predictions import PredictionCache
from vggrepro.reporting.stored.runs import NetsTest, StoredRun
from vggrepro.reporting.tables.build import build_report

_METHODS = (*dict.fromkeys(chain.from_iterable(COMBINED.values())), "centre", *COMBINED)


def archive_evidence(runs: Sequence[StoredRun], folder: Path, title: str, cache: PredictionCache | None = None) -> None:
    """Writes the evidence of tested classifiers, then tables and figures from that evidence.

    It covers all rows of the tables, and each net at each of its Q. `cache` avoids reading stored results again.
    Raises UserError, also if no run is tested.
    """
    tested = []
    for run in runs:
        if not (run.weights and run.dataset and run.finished):
            warn(f"no evidence of {run.name}: it is not tested yet")
        elif run.config.localisation:
            warn(f"no evidence of {run.name}: it predicts boxes, and Tables 8 to 10 are not kept")
        else:
            tested.append(run)
            if any(run.run_directory.transfers.glob("[!.]*.npz")):
                warn(f"no evidence of {run.name} on other data sets: Tables 11 and 12 are not kept")
    results = ranks_by_test(tested, cache or PredictionCache())
    if not results:
        raise UserError(f"--keep {folder}: no run there has stored posteriors; `vggrepro evaluate RUN` makes them")
    evidence.add(tested, results, folder)
    archived = evidence.read(folder)
    report = build_report(archived)
    (folder / "tables.md").write_text(render(report, Format.markdown, title, counts=False), encoding="utf-8")
    for group in report.groups:
        prefix = "" if len(report.groups) == 1 else f"{group.id}_"
        drawn = figures.of_report(report, group.id)
        names = {note.name for note in group.runs}
        if shown := _first_seed([run for run in archived if run.name in names]):
            drawn["learning_curves"] = figures.learning_curves({run.config.name: run for run in shown})
        for name, png in drawn.items():
            (folder / f"{prefix}{name}.png").write_bytes(png)


def ranks_by_test(tested: Sequence[StoredRun], cache: PredictionCache) -> dict[NetsTest, Ranks]:
    """Reads the stored ranks behind all tables, and those of each net at each of its Q. Raises UserError."""
    build_report(tested, cache)
    for run in tested:
        for Q in sorted({*run.config.single_Q, *run.config.multi_Q}):
            for method in _METHODS:
                cache.ranks([(run, (Q,))], method)
    return {test: ranks for test, ranks in cache.results().items() if all(run in tested for run, _ in test[0])}


def _first_seed(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Selects the runs of one seed at the first training scale: few enough for one figure."""
    seed = min(run.config.run.seed for run in runs)
    return [run for run in runs if run.config.run.seed == seed and run.S == value("scales")[0] and run.records("train")]
