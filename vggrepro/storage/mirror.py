"""The mirror of a run directory in MLflow.

Training writes to the run directory and never waits for a server: a daemon thread copies what is new to MLflow, and a
later process on the same directory continues the same MLflow run. A copy leaves out what MLflow has, so that it can be
repeated at any time; its state is ``mlflow.json`` in the run directory.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shlex
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from vggrepro.errors import UserError
from vggrepro.files import exclusive
from vggrepro.storage.directory import RunDirectory, parse_record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

Status = Literal["FINISHED", "FAILED", "KILLED"]
POLL_S = 5.0
LONGEST_PAUSE_S = 60.0
RETRY_S = 1.0
"""Between the attempts at the end of a run."""
LINES_PER_BATCH = 256
METRICS_PER_CALL = 1000  # MLflow's limit
KEY_TAG = "vggrepro.run_key"
_FILE = "mlflow.json"
_NO_CURVES = ("step", "time", "epoch", "seconds_left", "Q")  # straight lines all of them
_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what may write there"
_REMEDIES = {
    **dict.fromkeys(("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"), _LOGIN),
    **dict.fromkeys(("ENDPOINT_NOT_FOUND", "file is not a database"), "correct tracking.uri"),
    "out-of-date database schema": "use the MLflow that made the database, or set tracking.uri to another one",
    **dict.fromkeys(
        ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"), "mend it there, then start again"
    ),
}
"""Of what no waiting mends: by MLflow's error code, or words of its message."""
_refusals: set[str] = set()
"""What this process has reported: each of a graph's stages has a mirror, or several, and meets the same."""

logger = logging.getLogger(__name__)


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


@dataclass
class MirrorState:
    """How far MLflow has followed a run; ``mlflow.json`` in its directory."""

    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str = ""
    bytes: int = 0
    """Of ``metrics.jsonl`` that were copied."""
    last_line: str = ""
    """Of these, in Latin-1, which has all bytes. It tells whether the file was rewound since: no two lines are alike,
    as each has its time. Older runs lack it."""
    last_step: dict[str, int] = field(default_factory=dict)
    """Newest step of each metric. MLflow cannot delete points, and the trajectory is deterministic, so those up to
    here are left out when ``metrics.jsonl`` is copied from its beginning, after a rewind."""
    ended: str = ""
    """The status that MLflow has of the run since all of it was copied; empty while there is more to come."""

    @classmethod
    def of(cls, run: RunDirectory) -> MirrorState:
        """As the directory has it; a new one where nothing was copied. Raises UserError for a torn file."""
        stored = run.read_json(_FILE) or {}  # older runs have more than is needed
        return cls(**{each.name: stored[each.name] for each in fields(cls) if each.name in stored})

    def save(self, run: RunDirectory) -> None:
        """Write it to the run's directory."""
        run.write_json(_FILE, asdict(self))


def is_behind(run: RunDirectory) -> bool:
    """Whether MLflow lacks something of a finished run, as when its server was down at the end of it."""
    state = MirrorState.of(run)
    return state.ended != "FINISHED" or (run.metrics.exists() and run.metrics.stat().st_size > state.bytes)


class MlflowMirror:
    """Copies a run's ``metrics.jsonl`` and chosen files to one MLflow run, from a daemon thread.

    Numbers become metrics ``<kind>/<key>`` with the record's step and time; strings (so also "nan") and events do not.
    No error of MLflow's reaches the caller: each cause is logged once as one warning, and the copy is tried again after
    pauses of at most ``LONGEST_PAUSE_S`` seconds; where no waiting mends it, by the next mirror of the directory.
    """

    def __init__(self, run: RunDirectory, description: RunDescription) -> None:
        self.run, self.description = run, description
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._status: Status | None = None
        self._done = self._refused = False
        self._warned: set[str] = set()
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._state = MirrorState()

    def start(self) -> None:
        """Begin to mirror. Imports mlflow here (seconds), since imports racing in two threads can fail."""
        _import_quietly()
        self._thread.start()

    def close(self, status: Status, timeout_s: float) -> bool:
        """Copy the rest and end the MLflow run, within ``timeout_s`` seconds; whether it was done in time.

        If it was not, the thread gives up, and a later mirror of the same directory copies what is missing. What MLflow
        has refused for good is not waited for.
        """
        self._status = status
        self._closing.set()
        self._thread.join(timeout_s)
        self._given_up.set()
        if not (self._done or self._refused):
            logger.warning(
                "MLflow did not take everything within %g s; to be continued from %s", timeout_s, self.run.path
            )
        return self._done

    def _follow(self) -> None:
        pause_s = POLL_S
        while not (self._done or self._refused or self._given_up.is_set()):
            status = self._status
            try:
                self.copy(status)
                self._done, pause_s = status is not None, POLL_S
            except Exception as error:
                self._warn(error)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if status is None:
                self._closing.wait(pause_s)
            elif not (self._done or self._refused):
                self._given_up.wait(RETRY_S)

    def copy(self, status: Status | None = None) -> None:
        """Copy what MLflow lacks, and with a status what there is at the end; leaves early once given up.

        One mirror of a directory at a time, else one that was given up in the middle of a slow server's answer and the
        next one would each create a run, as would two jobs that both copy what MLflow missed of a third.

        Raises what MLflow raises.
        """
        client = self._client = self._client or self._connect()
        with exclusive(self.run.path / ".mlflow.lock"):
            if self._given_up.is_set():
                return
            if not self._state.run_id:
                self._state = self._take_up_run(client)
            self._copy_metrics(client)
            if status is None or self._given_up.is_set():
                return
            client.set_terminated(self._state.run_id, status)  # before the artifacts, whose store may fail on its own
            for path in (self.run.path / name for name in self.description.artifacts):
                if path.exists():
                    client.log_artifact(self._state.run_id, str(path))
            self._state.ended = status
            self._state.save(self.run)

    def _warn(self, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        signs = f"{getattr(error, 'error_code', '')} {text}"
        remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in signs), None)
        if remedy or isinstance(error, UserError):
            self._refused = True
            refusal = f"{shorten(text, 200, placeholder=' ...')}; {remedy}" if remedy else text
            if refusal not in _refusals:
                _refusals.add(refusal)
                logger.warning("MLflow takes no more, metrics.jsonl is complete: %s", refusal)
            return
        cause = re.sub(r"0x[0-9a-f]+|\d+", "", text)  # addresses and counts differ at each try
        if cause not in self._warned and not self._given_up.is_set():
            self._warned.add(cause)
            logger.warning("MLflow lags behind, metrics.jsonl is complete, will try again: %s", text[:300])

    def _connect(self) -> MlflowClient:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        name, uri = self.description.experiment, self.description.uri
        client = MlflowClient(tracking_uri=uri)
        folder = (self.description.artifact_root.absolute() / name).as_uri() if uri.startswith("sqlite:") else None
        if (experiment := client.get_experiment_by_name(name)) is None:
            try:
                client.create_experiment(name, artifact_location=folder)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another run was faster
                    raise
            experiment = client.get_experiment_by_name(name)
        if experiment.lifecycle_stage == "deleted":
            place = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} " if folder else ""
            command = f"{place}mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise UserError(
                f"its experiment {name} is deleted; restore it (`{command}`), or set another run.experiment"
            )
        self._experiment_id = experiment.experiment_id
        return client

    def _take_up_run(self, client: MlflowClient) -> MirrorState:
        """Find the directory's run, or create it, and describe it."""
        from mlflow.entities import Param, RunTag
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        shown, state = self.description, MirrorState.of(self.run)
        state.ended = ""
        state.save(self.run)  # the key before the run: one whose creation was not acknowledged is found again
        key = {KEY_TAG: state.key}
        found = client.search_runs([self._experiment_id], f"tags.`{KEY_TAG}` = '{state.key}'", max_results=1)
        run = found[0] if found else client.create_run(self._experiment_id, tags=key, run_name=shown.name)
        run_id = run.info.run_id
        if run_id != state.run_id:  # the first time, another database, or the run was deleted there
            state = MirrorState(state.key, run_id)
            state.save(self.run)
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        client.log_batch(
            run_id,
            params=[
                Param(key, _shortened(value, MAX_PARAM_VAL_LENGTH))
                for key, value in shown.params.items()
                if key not in run.data.params
            ],
            tags=[RunTag(key, _shortened(value, MAX_TAG_VAL_LENGTH)) for key, value in shown.tags.items()],
        )
        if shown.dataset and not run.inputs.dataset_inputs:
            client.log_inputs(run_id, [_dataset_input(shown.dataset)])
        return state

    def _copy_metrics(self, client: MlflowClient) -> None:
        state = self._state
        with suppress(FileNotFoundError), self.run.metrics.open("rb") as file:
            last_line = state.last_line.encode("latin-1")
            file.seek(max(0, state.bytes - len(last_line)))
            if not last_line or file.read(len(last_line)) != last_line:
                state.bytes = 0
            while not self._given_up.is_set():
                file.seek(state.bytes)
                lines = [line for line in itertools.islice(file, LINES_PER_BATCH) if line.endswith(b"\n")]
                if not lines:
                    return
                metrics = [metric for line in lines for metric in _metrics(line, state.last_step)]
                # Sent again after a crash before they are noted, these make no second points: MLflow drops exact
                # repetitions.
                for i in range(0, len(metrics), METRICS_PER_CALL):
                    client.log_batch(state.run_id, metrics=metrics[i : i + METRICS_PER_CALL])
                state.bytes, state.last_line = state.bytes + sum(map(len, lines)), lines[-1].decode("latin-1")
                for metric in metrics:
                    state.last_step[metric.key] = max(metric.step, state.last_step.get(metric.key, metric.step))
                if metrics:
                    state.save(self.run)


def _metrics(line: bytes, last_step: Mapping[str, int]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    record = parse_record(line) or {}
    kind = record.get("kind")
    if kind == "event":  # a chart for each number of each event would bury the curves
        return
    for name, value in record.items():
        if name in _NO_CURVES or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        key = f"{kind}/{name}"
        if kind == "evaluation" or record["step"] > last_step.get(key, -1):
            # without a step MLflow draws bars side by side, and not a curve of one point
            step = 0 if kind == "evaluation" else record["step"]
            yield Metric(key, value, timestamp=int(record["time"] * 1000), step=step)


def _dataset_input(dataset: Mapping[str, Any]) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = str(dataset["source"])
    digest = dataset["fingerprint"][:12]  # of at most 36 characters
    return DatasetInput(
        Dataset(Path(source).name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(dataset["splits"])),
        [InputTag("mlflow.data.context", "training")],
    )


def _shortened(value: str, limit: int) -> str:
    return value if len(value) <= limit else value[: limit - 1] + "…"


def _import_quietly() -> None:
    """Import mlflow such that it prints nothing, reports to nobody, and leaves trying again to the mirror."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the default of 7 holds a call for minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("MLflow is not installed; install it, or set tracking.mlflow=false") from None

    # The mirror reports each exception itself; MLflow adds a traceback per try, alembic a line per migration.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
