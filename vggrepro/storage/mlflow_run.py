"""A run in MLflow: its experiment, its entry below the graph's, what describes it. Only its metrics are elsewhere."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggrepro.errors import UserError
from vggrepro.files import exclusive
from vggrepro.storage.logged_model import ModelDescription

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

KEY_TAG = "vggrepro.run_key"
GRAPH_TAG = "vggrepro.graph"
"""Of the run that a graph's stages are children of."""
_KIND_TAG = "mlflow.experimentKind"
"""By which MLflow's pages choose between model training and language models."""


@dataclass(frozen=True)
class RunDescription:
    """Where a run directory is mirrored, and what MLflow shows of it besides its metrics."""

    uri: str
    """Tracking URI, see :func:`resolve_uri`."""
    experiment: str
    """Name of the MLflow experiment, created if need be."""
    name: str
    """Of a new MLflow run; a continued one keeps its own."""
    params: Mapping[str, str]
    """A continued run keeps the values that it has. Longer ones than MLflow takes end in an ellipsis, as do tags."""
    tags: Mapping[str, str]
    """A continued run gets the new values."""
    artifact_root: Path
    """Folder for the artifacts of a new experiment in a SQLite database (a server has its own)."""
    artifacts: tuple[str, ...] = ()
    """Files and folders of the run directory that are copied at its end, where they are there."""
    dataset: Mapping[str, Any] | None = None
    """`dataset.json`: its source and fingerprint become the run's MLflow dataset; None: it gets none."""
    graph: str = ""
    """Which run this one is a child of, by its name: one for each seed of an experiment; empty: of none."""
    model: ModelDescription | None = None
    """The final net, where it is logged as a model."""


def connect(described: RunDescription) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, which it creates at need. Raises what MLflow raises, and UserError."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, uri = described.experiment, described.uri
    client = MlflowClient(tracking_uri=uri)
    folder = (described.artifact_root.absolute() / name).as_uri() if uri.startswith("sqlite:") else None
    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            client.create_experiment(name, folder, tags={_KIND_TAG: "custom_model_development"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another run was faster
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        place = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} " if folder else ""
        command = f"{place}mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"its experiment {name} is deleted; restore it (`{command}`), or set another run.experiment")
    return client, experiment.experiment_id


def begin(client: MlflowClient, experiment_id: str, described: RunDescription, key: str) -> str:
    """Finds the run of a key, or creates it, describes it and returns its id. Raises what MLflow raises.

    The key is saved before: a run whose creation was not acknowledged is found again.
    """
    from mlflow.entities import Param, RunTag
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

    run = _found_or_created(client, experiment_id, KEY_TAG, key, described.name)
    run_id = run.info.run_id
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    tags = dict(described.tags)
    if described.graph:
        with exclusive(described.artifact_root.parent / described.experiment / ".mlflow.lock"):
            graph = _found_or_created(client, experiment_id, GRAPH_TAG, described.graph, described.graph)
        tags[MLFLOW_PARENT_RUN_ID] = graph.info.run_id
        if graph.info.status != "RUNNING":
            client.update_run(graph.info.run_id, status="RUNNING")
    client.log_batch(
        run_id,
        params=[
            Param(key, _shortened(value, MAX_PARAM_VAL_LENGTH))
            for key, value in described.params.items()
            if key not in run.data.params
        ],
        tags=[RunTag(key, _shortened(value, MAX_TAG_VAL_LENGTH)) for key, value in tags.items()],
    )
    if described.dataset and not run.inputs.dataset_inputs:
        client.log_inputs(run_id, [_dataset_input(described.dataset)])
    return run_id


def end(client: MlflowClient, experiment_id: str, run_id: str, status: str) -> None:
    """Ends a run, and the graph's when no other of its stages runs. Raises what MLflow raises."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    client.set_terminated(run_id, status)
    if parent := graph_of(client, run_id):
        siblings = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}' and attributes.status = 'RUNNING'"
        if not client.search_runs([experiment_id], siblings, max_results=1):
            client.set_terminated(parent, status)


def graph_of(client: MlflowClient, run_id: str) -> str | None:
    """The id of the graph's run that a run is a child of. Raises what MLflow raises."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    return client.get_run(run_id).data.tags.get(MLFLOW_PARENT_RUN_ID)


def _found_or_created(client: MlflowClient, experiment_id: str, tag: str, key: str, name: str) -> Run:
    found = client.search_runs([experiment_id], f"tags.`{tag}` = '{key}'", max_results=1)
    return found[0] if found else client.create_run(experiment_id, tags={tag: key}, run_name=name)


def dataset_of(dataset: Mapping[str, Any]) -> tuple[str, str]:
    """Name and digest of a run's images, as MLflow has them."""
    return Path(dataset["source"]).name, dataset["fingerprint"][:12]  # of at most 36 characters


def _dataset_input(dataset: Mapping[str, Any]) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest = dataset_of(dataset)
    source = json.dumps({"uri": str(dataset["source"])})
    return DatasetInput(
        Dataset(name, digest, "local", source, profile=json.dumps(dataset["splits"])),
        [InputTag("mlflow.data.context", "training")],
    )


def _shortened(value: str, limit: int) -> str:
    return value if len(value) <= limit else value[: limit - 1] + "…"


def import_quietly() -> None:
    """Import mlflow such that it prints nothing, reports to nobody, and leaves trying again to the mirror."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the default of 7 holds a call for minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow

        with suppress(ImportError):  # of psutil: its user says so
            import mlflow.system_metrics.system_metrics_monitor  # noqa: F401 (before threads import it)
    except ModuleNotFoundError:
        raise UserError("MLflow is not installed; install it, or set tracking.mlflow=false") from None

    # The mirror reports each exception itself; MLflow adds a traceback per try, alembic a line per migration.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
