"""Verbs that train: a stage, or a graph."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vggrepro.cli.options import ConfigOption, QuietOption, SeedsOption, SetOption, StopAfterOption
from vggrepro.errors import UserError


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file of a stage, or its name in configs/.")],
    changes: SetOption = [],  # noqa: B006 (typer wants a list)
    resume: Annotated[
        Literal["auto", "never"],
        typer.Option(help="auto: resume from the newest checkpoint; never: fail if there is a checkpoint."),
    ] = "auto",
    stop_after: StopAfterOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train even if activations vanish or explode at initialisation.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Train one stage, alone or under torchrun.

    It resumes from its newest checkpoint. On SIGTERM and SIGUSR2 it saves and exits with status 75.
    """
    from vggrepro.config.recipes import load_stage
    from vggrepro.pipeline.session import open_session
    from vggrepro.pipeline.stage import train_stage

    stage, parent = load_stage(config, changes)
    if resume == "never" and any((stage.directory / "checkpoints").glob("*.pt")):
        raise UserError(
            f"--resume never, but {stage.directory} has checkpoints; use --resume auto, another run.name, "
            f"or remove the directory"
        )
    with open_session([stage], stop_after_s=stop_after and 60 * stop_after) as session:
        train_stage(stage, parent, session, force=force)


def reproduce(
    config: ConfigOption,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    stop_after: StopAfterOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the stage graph on this machine: train missing stages, evaluate, print the tables.

    --seeds runs the graph once per seed in one experiment; the tables then show mean and spread. It resumes from its
    newest checkpoint. On SIGTERM and SIGUSR2 it saves and exits with status 75.
    """
    from vggrepro.config.recipes import load_graph
    from vggrepro.pipeline.graph import reproduce

    reproduce(load_graph(config, changes, seeds), stop_after_s=stop_after and 60 * stop_after)
