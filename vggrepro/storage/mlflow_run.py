"""Runs in MLflow: experiment, parent run of the graph and description; `storage/mirror.py` copies the metrics."""

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
    from mlflow.entities import Run

KEY_TAG = "vggrepro.run_key"
GRAPH_TAG = "vggrepro.graph"
"""Tag of the parent run of a graph's stages."""
_KIND_TAG = "mlflow.experimentKind"
"""Tag that selects MLflow's pages for model training instead of language models."""


@dataclass(frozen=True)
class RunDescription:
    """Destination and description of a mirrored run."""

    uri: str
    """Tracking URI, see :func:`resolve_uri`."""
    experiment: str
    """Name of the MLflow experiment, which is created if it does not exist."""
    name: str
    """Name of a new MLflow run; a continued run keeps its name."""
    params: Mapping[str, str]
    """Parameters; a continued run keeps its values. Parameters and tags that are too long end with an ellipsis."""
    tags: Mapping[str, str]
    """Tags; a continued run gets the new values."""
    artifact_root: Path
    """Folder for the artifacts of a new experiment in a SQLite database; a server has its own."""
    artifacts: tuple[str, ...] = ()
    """Files and folders of the run directory that are copied at the end, if they exist."""
    dataset: Mapping[str, Any] | None = None
    """Content of `dataset.json`, whose source and fingerprint become the run's MLflow dataset."""
    graph: str = ""
    """Name of the parent run, one per seed of an experiment; empty for none."""
    model: ModelDescription | None = None
    """Final net, if it is logged as a model."""


def connect(described: RunDescription) -> tuple[MlflowClient, str]:
    """Returns a client and the ID of the experiment, new or existing. Raises UserError and MLflow's exceptions."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, uri = described.experiment, described.uri
    client = MlflowClient(tracking_uri=uri)
    folder = (described.artifact_root.absolute() / name).as_uri() if uri.startswith("sqlite:") else None
    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            client.create_experiment(name, folder, tags={_KIND_TAG: "custom_model_development"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # otherwise another run has just created it
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        place = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} " if folder else ""
        command = f"{place}mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"its experiment {name} is deleted; restore it (`{command}`), or set another run.experiment")
    return client, experiment.experiment_id


def begin(client: MlflowClient, experiment_id: str, described: RunDescription, key: str) -> str:
    """Finds or creates the run of a key, describes it and returns its ID. MLflow's exceptions propagate."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

    run = _find_or_create(client, experiment_id, KEY_TAG, key, described.name)
    run_id = run.info.run_id
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    tags = dict(described.tags)
    if described.graph:
        with exclusive(described.artifact_root.parent / described.experiment / ".mlflow.lock"):
            graph = _find_or_create(client, experiment_id, GRAPH_TAG, described.graph, described.graph)
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
    if (dataset := described.dataset) and not run.inputs.dataset_inputs:
        source, profile = json.dumps({"uri": str(dataset["source"])}), json.dumps(dataset["splits"])
        entity = Dataset(*dataset_of(dataset), "local", source, profile=profile)
        client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
    return run_id


def end(client: MlflowClient, experiment_id: str, run_id: str, status: str) -> None:
    """Ends a run, and the graph's run if no other stage is running. MLflow's exceptions propagate."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    client.set_terminated(run_id, status)
    if parent := graph_of(client, run_id):
        siblings = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}' and attributes.status = 'RUNNING'"
        if not client.search_runs([experiment_id], siblings, max_results=1):
            client.set_terminated(parent, status)


def graph_of(client: MlflowClient, run_id: str) -> str | None:
    """Returns the ID of a run's parent, the graph's run, or None. MLflow's exceptions propagate."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    return client.get_run(run_id).data.tags.get(MLFLOW_PARENT_RUN_ID)


def _find_or_create(client: MlflowClient, experiment_id: str, tag: str, key: str, name: str) -> Run:
    runs = client.search_runs([experiment_id], f"tags.`{tag}` = '{key}'", max_results=1)
    return runs[0] if runs else client.create_run(experiment_id, tags={tag: key}, run_name=name)


def dataset_of(dataset: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the name and digest of a run's images in MLflow."""
    return Path(dataset["source"]).name, dataset["fingerprint"][:12]  # MLflow allows 36 characters


def _shortened(value: str, limit: int) -> str:
    return value if len(value) <= limit else value[: limit - 1] + "…"


def import_quietly() -> None:
    """Imports mlflow without output, telemetry or retries, which the mirror does instead."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the default of 7 blocks a call for minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow

        with suppress(ImportError):  # the sampler reports if psutil is missing
            import mlflow.system_metrics.system_metrics_monitor  # noqa: F401 (before threads import it)
    except ModuleNotFoundError:
        raise UserError("MLflow is not installed; install it, or set tracking.mlflow=false") from None

    # The mirror reports exceptions; MLflow would add a traceback per attempt, and alembic a line per migration.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
