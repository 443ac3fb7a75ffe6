"""Verb that publishes a net."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vggrepro.cli.options import JsonOption, show


def publish(
    run: Annotated[Path, typer.Argument(help="The run directory of a finished net.")],
    to: Annotated[
        str, typer.Option("--to", help="A folder, or hf:owner/name for a repository of the Hugging Face Hub.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files without writing or uploading anything.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Create a new repository as private.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another net, or an edited model card.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a net with its model card, ledger and results, for vggrepro, timm, torchvision and torch.hub."""
    from vggrepro.pipeline.publish import publish

    made = publish(run, to, dry_run=dry_run, private=private, replace=replace)
    lines = [f"{size / 1e6:10.3f} MB  {name}" for name, size in made.files.items()]
    total = sum(made.files.values()) / 1e6
    lines += [f"{total:10.3f} MB  {'would be' if dry_run else 'are'} published in {made.place}", *made.notes]
    show(asdict(made), lines, as_json)
