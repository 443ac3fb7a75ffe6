"""Provenance of the runs behind a report."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from vggrepro.reporting.documents.blocks import DASH, Block, Bullets, Heading, Sheet, Text, sheet_of
from vggrepro.reporting.tables.report import RunNote

_COLUMNS: Mapping[str, Callable[[RunNote], str]] = {
    "run": lambda run: run.name,
    "seed": lambda run: DASH if run.imported else str(run.seed),
    "step": lambda run: "imported" if run.imported else _steps(run),
    "net's hash": lambda run: (run.weights or DASH)[:12],
    "code": lambda run: (run.git_commit or DASH)[:10] + (" and changes" if run.git_dirty else ""),
    "departures": lambda run: str(len(run.departures)),
    "MLflow run": lambda run: (run.mlflow_run or DASH)[:8],
    "directory": lambda run: run.directory,
}


def run_sheet(runs: Sequence[RunNote]) -> Sheet:
    """Builds a row per run: its seed, hash, code, MLflow run and directory."""
    return sheet_of(runs, _COLUMNS, {"seed", "departures"})


def _steps(run: RunNote) -> str:
    return f"{run.step:,} of {run.iterations:,}" + ("" if run.finished else ", not finished")


def ledger_blocks(runs: Sequence[RunNote]) -> Iterator[Block]:
    """Yields the departures, first those common to all runs, then the unused stored results."""
    texts = [(run.name, list(map(str, run.departures))) for run in runs]
    counts = Counter(text for _, lines in texts for text in lines)
    common = [text for text, n in counts.items() if n == len(texts)]
    single = [f"{name}: {text}" for name, lines in texts for text in lines if text not in common]
    if counts:
        yield Heading(3, "Departures from the paper (fidelity ledger)", folded=True)
        yield Bullets(common + single)
    else:
        yield Text("Departures from the paper: none.")
    unused = [f"{run.name}: {file}" for run in runs for file in run.unused]
    if unused:
        yield Text("Stored answers of another net or another index, used nowhere above:")
        yield Bullets(unused)
