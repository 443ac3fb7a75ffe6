"""Verbs that train: one stage, or the whole graph."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vggrepro.cli.options import ConfigOption, QuietOption, SeedsOption, SetOption, StopAfterOption
from vggrepro.errors import UserError


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file of one stage, or its name in configs/.")],
    changes: SetOption = [],  # noqa: B006 (typer wants a list)
    resume: Annotated[
        Literal["auto", "never"],
        typer.Option(help="auto: go on from the newest checkpoint; never: stop with an error if there is one."),
    ] = "auto",
    stop_after: StopAfterOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train although activations vanish or explode at initialisation.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Train one stage, alone or under torchrun.

    On SIGTERM and SIGUSR2, too, it saves and leaves with status 75; the same command goes on from there.
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
    """The whole stage graph on this machine: train what is missing, evaluate, print the tables.

    With --seeds once for each seed, whole graphs one after another in one experiment; the tables then give mean and
    spread. On SIGTERM and SIGUSR2, too, it saves and leaves with status 75; the same command goes on from there.
    """
    from vggrepro.config.recipes import load_graph
    from vggrepro.pipeline.graph import reproduce

    reproduce(load_graph(config, changes, seeds), stop_after_s=stop_after and 60 * stop_after)
