"""Status of a run directory, without loading its net: whether it is finished, and its configuration."""

from pathlib import Path

from vggrepro.config.parsing import differences
from vggrepro.config.recipes import load_resolved
from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.storage.directory import RunDirectory


def final_file(run: Path) -> Path:
    """Returns the file of the final net in a run directory; a stage is finished if it exists."""
    return RunDirectory(run).checkpoints / "final.pt"


def known_weights(run: RunDirectory) -> str | None:
    """Returns the stored hash of a run's final net, or None. Raises UserError for a damaged file."""
    final = run.read_json("final.json")
    return final["weights"] if final else None


def note_weights(run: RunDirectory, weights: str, step: int) -> None:
    """Stores the hash of a run's final net and its number of iterations."""
    run.write_json("final.json", {"weights": weights, "step": step})


def is_finished(config: Config) -> bool:
    """Whether a stage has a final net. Raises UserError if its directory belongs to another configuration."""
    final, stored = final_file(config.directory), config.directory / "config.yaml"
    if stored.exists() and (changed := differences(load_resolved(stored).trajectory(), config.trajectory())):
        listed = "; ".join(f"{key} was {old}, is {new}" for key, old, new in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        empty = "" if any(final.parent.glob("*.pt")) else ", which has no checkpoints yet"
        raise UserError(
            f"run directory {config.directory} belongs to another configuration ({listed}{more}); "
            f"choose another run.experiment or run.name, or remove the directory{empty}"
        )
    return final.exists()


def require_finished(config: Config) -> None:
    """Raises UserError if there is no final net; :func:`is_finished` checks the configuration."""
    if not final_file(config.directory).exists():
        raise UserError(
            f"stage {config.name} is not finished (no final.pt in {config.directory}/checkpoints); "
            f"train it first, or run `vggrepro reproduce`"
        )


def locate(net: Path) -> tuple[Path, Path]:
    """Returns (checkpoint, run directory) of a net, given either. Raises UserError if there is no final net."""
    if not net.is_dir():
        return net, net.parent.parent
    final = final_file(net)
    if final.exists():
        return final, net
    if (net / "config.yaml").exists():
        raise UserError(f"{net} is not finished (no {final.name}); train it, or name one of its checkpoints")
    runs = sorted(str(file.parent) for file in net.glob("*/config.yaml"))
    remedy = f"its runs are {', '.join(runs[:8])}" if runs else "name one, e.g. runs/demo/D"
    raise UserError(f"{net} is not a run directory (it has no config.yaml); {remedy}")


def stage_at(run: Path) -> Config:
    """Reads the latest configuration of a run directory, with `run.root` at its current location. Raises UserError."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run} is not a run directory (it has no config.yaml); name one, e.g. runs/localisation/D")
    return relocated(load_resolved(run / "config.yaml"), run)


def relocated(config: Config, directory: Path) -> Config:
    """Sets `run.root` to the current location of a run directory, which may have moved."""
    return config.with_settings("run", root=directory.resolve().parent.parent)
