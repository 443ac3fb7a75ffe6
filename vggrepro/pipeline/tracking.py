"""A stage's run in MLflow, for as long as it is worked on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vggrepro.config.parsing import flatten
from vggrepro.config.settings import Config
from vggrepro.errors import Interrupted
from vggrepro.ranks.topology import Topology
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.ledger import read_ledger
from vggrepro.storage.mirror import MlflowMirror, RunDescription, Status, is_behind
from vggrepro.storage.tracking_uri import resolve_uri

_MLFLOW_PATIENCE_S = 60.0


@contextmanager
def mirrored(config: Config, run: RunDirectory, topology: Topology) -> Iterator[None]:
    """Mirrors the run in MLflow for as long as the block takes; on rank 0, unless tracking is off."""
    if not (topology.is_first and config.tracking.mlflow):
        yield
        return
    params = flatten(config.model_dump(mode="json"))
    params |= {"evaluation.single_Q": list(config.single_Q), "evaluation.multi_Q": list(config.multi_Q)}
    description = RunDescription(
        uri=resolve_uri(config.tracking.uri, config.run.root),
        experiment=config.run.experiment,
        name=config.name,
        params={key: str(setting) for key, setting in params.items()},
        tags={"stage": config.name, "net": config.model.net} | _provenance(run),
        artifact_root=config.run.root / "mlartifacts",
        artifacts=("config.yaml", "dataset.json", "environment.json", "ledger.json", "figures"),
        dataset=run.read_json("dataset.json"),
    )
    mirror = MlflowMirror(run, description)
    mirror.start()
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    finally:
        # asked to stop, there may be half a minute left for all that follows; the next start copies what is missing
        mirror.close(status, 5.0 if status == "KILLED" else _MLFLOW_PATIENCE_S)


def catch_up(stages: Iterable[Config], topology: Topology) -> None:
    """Copies to MLflow what it missed of stages that are done, as when its server was down at the end of them.

    Gives up at the first that the server does not take. Rank 0 alone calls it; of a stage that another process works
    on, there would be two copies at the same time. Raises UserError.
    """
    for config in stages:
        run = RunDirectory(config.directory)
        if config.tracking.mlflow and is_behind(run):
            with mirrored(config, run, topology):
                pass
            if is_behind(run):
                return


def _provenance(run: RunDirectory) -> dict[str, str]:
    """What MLflow shows of a run's making: the command, the code's commit, and the departures from the paper."""
    departures = read_ledger(run) or []
    made = run.read_json("environment.json") or {}
    tags = {
        "departures": str(len(departures)),
        "mlflow.note.content": "\n".join(
            ["Departures from the paper:" if departures else "No departure from the paper.", ""]
            + [f"- {departure}" for departure in departures]
        ),
        "mlflow.source.name": made.get("command"),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": made.get("git_commit"),
    }
    return {key: text for key, text in tags.items() if text}
