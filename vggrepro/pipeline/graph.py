"""Training and evaluation of a graph of stages on this machine, and its tables."""

from pathlib import Path

from vggrepro.config.recipes import Graph
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.stage import evaluate_stage, train_stage
from vggrepro.pipeline.tracking import catch_up
from vggrepro.pipeline.transfer import transfer_together
from vggrepro.preflight.images import require_sets
from vggrepro.progress import echo
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.reporting.tables.build import build_report
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import is_finished
from vggrepro.storage.tracking_uri import resolve_uri, ui_command


def reproduce(graph: Graph, *, stop_after_s: float | None = None) -> Path | None:
    """Trains and evaluates the unfinished stages, parents first, and writes the tables; every rank must call it.

    Args:
        graph: the stages.
        stop_after_s: wall time in seconds after which the work stops; the same call resumes it.

    Returns the file of the tables on rank 0. Raises UserError, and Interrupted after a request to stop.
    """
    stages = list(graph.stages.values())
    for config in stages:
        if not is_finished(config):
            require_sets(config)
    with open_session(stages, stop_after_s=stop_after_s) as session:
        for number, (name, config) in enumerate(graph.stages.items(), 1):
            parent = graph.parent_of(name)
            train_stage(config, parent, session, later=stages[number:])
            evaluate_stage(config, parent, session)
        transfer_together(stages, session)
    if not session.topology.is_first:
        return None
    catch_up(stages, session.topology)
    return write_tables(graph)


def write_tables(graph: Graph) -> Path:
    """Prints and writes the tables of all results so far; returns their file. Raises UserError."""
    stages = list(graph.stages.values())
    folder = RunDirectory(stages[0].run.root / graph.name)
    title = f"{graph.name}: measured beside printed"
    seen, text = None, ""
    # Other stages may run as separate jobs. The tables are rewritten until there are no new results.
    while seen != (results := [RunDirectory(stage.directory).results() for stage in stages]):
        seen = results
        report = build_report([StoredRun(config.directory, config) for config in stages])
        text = render(report, Format.markdown, title, counts=False)
        folder.write_text("tables.md", text)
        folder.write_text("tables.html", render(report, Format.html, title, counts=False))
    print(text, flush=True)  # before the lines below if both are redirected to one file
    echo(f"tables written to {folder.path / 'tables.md'} and tables.html")
    if stages[0].tracking.mlflow:
        echo(f"runs side by side in MLflow: {ui_command(resolve_uri(stages[0].tracking.uri, stages[0].run.root))}")
    return folder.path / "tables.md"
