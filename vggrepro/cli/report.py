"""Verbs that report measurements."""

from pathlib import Path
from typing import Annotated

import typer

from vggrepro.cli.options import JsonOption, QuietOption, RunsOption, write
from vggrepro.errors import UserError


def tables(
    runs: RunsOption = [Path("runs")],  # noqa: B006
    experiment: Annotated[
        list[str], typer.Option("--experiment", "-e", help="Only runs of this experiment; repeatable.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The .md, .html, .tex, .csv or .json file to write.")
    ] = None,
    update: Annotated[
        Path | None, typer.Option(help="Update the generated sections of this document, e.g. REPRODUCTION.md.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Add the evidence to this folder: ranks of every test, in a small form; renew its tables and figures. "
            "--runs of this folder makes them again without nets and images."
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print Tables 1-12, measured beside printed, and test the paper's claims, from the stored results of runs."""
    from vggrepro.progress import echo, warn
    from vggrepro.reporting.documents.render import Format, format_of, render
    from vggrepro.reporting.stored.find_runs import find_runs
    from vggrepro.reporting.stored.predictions import PredictionCache
    from vggrepro.reporting.tables.build import build_report

    form = format_of(out) if out else Format.json if as_json else Format.markdown
    title = "Very Deep Convolutional Networks (arXiv 1409.1556): measured beside printed"
    found = find_runs([place for place in runs if place.exists() or place != Path("runs")], experiment)
    if not found and not keep:
        warn(f"no runs in {', '.join(map(str, runs))}: nothing is measured")
    cache = PredictionCache()
    report = build_report(found, cache)
    text = render(report, form, title)
    if out:
        write(out, text)
        echo(f"written to {out}")
    if update:
        from vggrepro.reporting.documents.document import update_document

        update_document(update, report)
        echo(f"{update} is renewed")
    if keep:
        from vggrepro.reporting.documents.archive import archive_evidence

        archive_evidence(found, keep, title, cache)
        echo(f"evidence written to {keep}")
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    elif not out and not update and not keep:
        typer.echo(text, nl=False)


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Run directories, stages, experiment:stage, or MLflow run ids; two or more.")
    ],
    places: RunsOption = [Path("runs")],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write: .html with curves and images, or .md.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare runs: settings, curves, errors with paired tests, classes, the images on which they disagree."""
    from vggrepro.progress import echo
    from vggrepro.reporting.documents.blocks import to_html, to_markdown
    from vggrepro.reporting.documents.compare import blocks_of, open_images
    from vggrepro.reporting.documents.compare import compare as compare_runs
    from vggrepro.reporting.stored.find_runs import resolve

    if out and out.suffix not in (".html", ".md"):
        raise UserError(f"--out {out}: unknown ending {out.suffix!r}; use .html or .md")
    chosen = resolve(runs, places)
    index, why_not = open_images(chosen)
    made = compare_runs(chosen, index, [why_not] if why_not else [])
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
    if out:
        blocks = blocks_of(made, chosen, index)
        write(out, to_html(" against ".join(made.runs), blocks) if out.suffix == ".html" else to_markdown(blocks))
        echo(f"written to {out}")
    elif not as_json:
        typer.echo(to_markdown(blocks_of(made, chosen, None)), nl=False)
        echo("with curves and images: --out compare.html")
