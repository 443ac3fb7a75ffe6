"""What a run directory says about its stage, without loading anything: is it finished, is it of this configuration."""

from pathlib import Path

from vggrepro.config.parsing import differences
from vggrepro.config.recipes import load_resolved
from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.storage.directory import RunDirectory


def final_file(run: Path) -> Path:
    """The net of a finished stage in its run directory; that it exists is what finished means."""
    return RunDirectory(run).checkpoints / "final.pt"


def known_weights(run: RunDirectory) -> str | None:
    """The hash of a run's final net, as far as it has been computed. Raises UserError for a torn file."""
    final = run.read_json("final.json")
    return final["weights"] if final else None


def note_weights(run: RunDirectory, weights: str, step: int) -> None:
    """Keeps the hash of a run's final net, and the iterations that made it."""
    run.write_json("final.json", {"weights": weights, "step": step})


def is_finished(config: Config) -> bool:
    """Whether the stage's run directory holds its final net, trained under this configuration.

    Raises UserError when the directory belongs to another configuration, naming what differs.
    """
    final, stored = final_file(config.directory), config.directory / "config.yaml"
    if stored.exists() and (changed := differences(load_resolved(stored).trajectory(), config.trajectory())):
        listed = "; ".join(f"{key} was {old}, is {new}" for key, old, new in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        empty = "" if any(final.parent.glob("*.pt")) else ", in which nothing is trained yet"
        raise UserError(
            f"run directory {config.directory} belongs to another configuration ({listed}{more}); "
            f"choose another run.experiment or run.name, or remove the directory{empty}"
        )
    return final.exists()


def require_finished(config: Config) -> None:
    """Raises UserError when there is no final net; whose directory it is, :func:`is_finished` has seen before."""
    if not final_file(config.directory).exists():
        raise UserError(
            f"stage {config.name} is not finished (no final.pt in {config.directory}/checkpoints); "
            f"train it first, or let `vggrepro reproduce` do so"
        )


def locate(net: Path) -> tuple[Path, Path]:
    """(file, run directory) of a net that is named by its run directory, or by one of its checkpoints.

    Raises UserError for a directory without a final net, naming what it is instead.
    """
    if not net.is_dir():
        return net, net.parent.parent
    final = final_file(net)
    if final.exists():
        return final, net
    if (net / "config.yaml").exists():
        raise UserError(f"{net} is not finished (no {final.name}); train it, or name one of its checkpoints")
    within = sorted(str(file.parent) for file in net.glob("*/config.yaml"))
    what = f"its runs are {', '.join(within[:8])}" if within else "name one, e.g. runs/demo/D"
    raise UserError(f"{net} is no run directory (it has no config.yaml); {what}")


def stage_at(run: Path) -> Config:
    """The configuration of a run directory, as it was tested last, with `run.root` where it lies now.

    Raises UserError.
    """
    if not (run / "config.yaml").exists():
        raise UserError(f"{run} is no run directory (it has no config.yaml); name one, e.g. runs/localisation/D")
    return relocated(load_resolved(run / "config.yaml"), run)


def relocated(config: Config, directory: Path) -> Config:
    """The configuration of a run directory with `run.root` where it lies now, which may not be where it was made."""
    return config.with_settings("run", root=directory.resolve().parent.parent)
