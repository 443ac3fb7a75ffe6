"""What a report says of the runs themselves: the way back from a number to what made it."""

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
    """The way back from a number to what made it."""
    return sheet_of(runs, _COLUMNS, {"seed", "departures"})


def _steps(run: RunNote) -> str:
    return f"{run.step:,} of {run.iterations:,}" + ("" if run.finished else ", not finished")


def ledger_blocks(runs: Sequence[RunNote]) -> Iterator[Block]:
    """The departures, those of all runs first and then each run's own; and answers that were left aside."""
    texts = [(run.name, [str(one) for one in run.departures]) for run in runs]
    counts = Counter(text for _, lines in texts for text in lines)
    common = [text for text, n in counts.items() if n == len(texts)]
    own = [f"{name}: {text}" for name, lines in texts for text in lines if text not in common]
    if counts:
        yield Heading(3, "Departures from the paper (fidelity ledger)", folded=True)
        yield Bullets(common + own)
    else:
        yield Text("Departures from the paper: none.")
    unused = [f"{run.name}: {file}" for run in runs for file in run.unused]
    if unused:
        yield Text("Stored answers of another net or another index, used nowhere above:")
        yield Bullets(unused)
