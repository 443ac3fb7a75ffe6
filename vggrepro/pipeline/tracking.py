"""Mirroring of a stage's run in MLflow."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

from vggrepro.config.parsing import flatten
from vggrepro.config.settings import Config
from vggrepro.config.tracking import MOST_BYTES
from vggrepro.errors import Interrupted
from vggrepro.models.table1 import architecture_of
from vggrepro.ranks.topology import Topology
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.ledger import read_ledger
from vggrepro.storage.logged_model import ModelDescription
from vggrepro.storage.mirror import MlflowMirror, Status, is_behind
from vggrepro.storage.mlflow_run import RunDescription
from vggrepro.storage.status import final_file
from vggrepro.storage.system_metrics import sampled
from vggrepro.storage.tracking_uri import resolve_uri

_MLFLOW_PATIENCE_S = 60.0
_UPLOAD_BYTES_PER_S = 5e6
"""Slowest expected upload of a model, by which the wait at the end of a run is extended."""


@contextmanager
def mirrored(config: Config, run: RunDirectory, topology: Topology) -> Iterator[None]:
    """Mirrors the run in MLflow on rank 0 during the block, and samples each node, unless tracking is off."""
    if not config.tracking.mlflow:
        yield
        return
    mirror = _mirror(config, run) if topology.is_first else nullcontext()
    with mirror, sampled(run, topology) if config.tracking.system_metrics else nullcontext():
        yield


@contextmanager
def _mirror(config: Config, run: RunDirectory) -> Iterator[None]:
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
        graph=f"{config.run.experiment}, seed {config.run.seed}",
        model=_model(config, run),
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
        # After a request to stop, there may be half a minute left. The next start copies the remaining records.
        upload_s = _bytes(config) / _UPLOAD_BYTES_PER_S if description.model else 0.0
        mirror.close(status, 5.0 if status == "KILLED" else _MLFLOW_PATIENCE_S + upload_s)


def _bytes(config: Config) -> int:
    return 4 * architecture_of(config).parameters


def _model(config: Config, run: RunDirectory) -> ModelDescription | None:
    """Describes the final net as a model; None if it is not logged, as for nets that predict boxes."""
    tracking, net, dataset = config.tracking, config.model, run.read_json("dataset.json")
    logged = tracking.model == "always" or tracking.register or _bytes(config) <= MOST_BYTES
    if not logged or tracking.model == "never" or config.localisation or not net.fully_connected:
        return None
    return ModelDescription(
        final=final_file(run.path),
        name=config.name,
        params={"net": net.net, "S": config.data.S_text, "geometry": net.geometry, "seed": str(config.run.seed)},
        data=dataset["fingerprint"] if dataset else "",
        register=f"{tracking.register}-{net.net}" if tracking.register else None,
    )


def catch_up(stages: Iterable[Config], topology: Topology) -> None:
    """Completes the copies of finished stages in MLflow until one fails; only rank 0 calls it. Raises UserError."""
    for config in stages:
        run = RunDirectory(config.directory)
        logged = _model(config, run) is not None
        if config.tracking.mlflow and is_behind(run, model=logged):
            with mirrored(config, run, topology):
                pass
            if is_behind(run, model=logged):
                return


def _provenance(run: RunDirectory) -> dict[str, str]:
    """Returns MLflow tags with the command, the commit of the code, and the departures from the paper."""
    departures = read_ledger(run) or []
    environment = run.read_json("environment.json") or {}
    tags = {
        "departures": str(len(departures)),
        "mlflow.note.content": "\n".join(
            ["Departures from the paper:" if departures else "No departure from the paper.", ""]
            + [f"- {departure}" for departure in departures]
        ),
        "mlflow.source.name": environment.get("command"),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": environment.get("git_commit"),
    }
    return {key: text for key, text in tags.items() if text}
