"""Options of several verbs, and printing of results."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from vggrepro.errors import UserError
from vggrepro.progress import be_quiet

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML file, or a name in configs/, of a stage or a graph.")
]
SetOption = Annotated[list[str], typer.Option("--set", "-s", help="Override a setting: section.key=value; repeatable.")]
RunsOption = Annotated[
    list[Path], typer.Option("--runs", "-r", help="Folder of all runs, of an experiment, or of a run; repeatable.")
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="Run the graph once per seed, e.g. 0,1,2.")]
StopAfterOption = Annotated[
    float | None, typer.Option(min=0, help="Minutes after which to save and exit with status 75.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=be_quiet,
        help="Suppress progress and information on standard error; warnings, errors and results are still printed.",
    ),
]
"""Its callback applies it, so functions ignore the value."""


def write(file: Path, text: str) -> None:
    """Writes the file of `--out`. Raises UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; choose another place") from None


def integers(text: str, option: str = "--scales") -> tuple[int, ...]:
    """Parses an option such as 256,384,512. Raises UserError."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} {text}: expected integers separated by commas, e.g. 256,384,512")
    return numbers


def show(report: dict[str, Any], lines: Iterable[str], as_json: bool) -> None:
    """Prints the result of a verb: one JSON object with `--json`, else lines for people."""
    if as_json:
        print_json(report)
    else:
        for line in lines:
            typer.echo(line)


def print_json(report: dict[str, Any]) -> None:
    """Prints an object as `--json` does."""
    typer.echo(json.dumps(report, indent=2))
