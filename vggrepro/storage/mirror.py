"""Mirror of a run directory in MLflow.

Training writes to the run directory and never waits for a server. A daemon thread copies new records to MLflow, and a
later process on the same directory continues the same MLflow run. Copying skips records that MLflow has, so that it can
be repeated at any time; its state is ``mlflow.json`` in the run directory.
"""

from __future__ import annotations

import itertools
import logging
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from textwrap import shorten
from typing import TYPE_CHECKING, Literal

from vggrepro.errors import UserError
from vggrepro.files import exclusive
from vggrepro.storage.directory import RunDirectory, complete_records, parse_record
from vggrepro.storage.logged_model import HEADLINES, create_model, register, upload_model
from vggrepro.storage.mlflow_run import RunDescription, begin, connect, dataset_of, end, graph_of, import_quietly
from vggrepro.storage.system_metrics import metrics_files

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

Status = Literal["FINISHED", "FAILED", "KILLED"]
POLL_S = 5.0
LONGEST_PAUSE_S = 60.0
RETRY_S = 1.0
"""Pause between attempts at the end of a run."""
LINES_PER_BATCH = 256
METRICS_PER_CALL = 1000  # MLflow's limit
_FILE = "mlflow.json"
_NO_CURVES = ("step", "time", "epoch", "seconds_left", "Q")  # straight lines
_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, with write access"
_REMEDIES = {
    **dict.fromkeys(("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"), _LOGIN),
    **dict.fromkeys(("ENDPOINT_NOT_FOUND", "file is not a database"), "correct tracking.uri"),
    "out-of-date database schema": "use the MLflow that made the database, or set tracking.uri to another one",
    **dict.fromkeys(
        ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"), "fix it in MLflow, then start again"
    ),
}
"""Remedies for permanent errors, by MLflow's error code or part of its message."""
_refusals: set[str] = set()
"""Permanent errors that this process has reported; all mirrors of a graph's stages encounter the same ones."""

logger = logging.getLogger(__name__)


@dataclass
class MirrorState:
    """State of the mirror of a run: ``mlflow.json`` in its directory."""

    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str = ""
    bytes: int = 0
    """Copied bytes of ``metrics.jsonl``."""
    last_line: str = ""
    """Last copied line in Latin-1, which can represent all bytes. If it differs, the file was rewound, because the
    time makes lines unique. Older runs lack it."""
    last_step: dict[str, int] = field(default_factory=dict)
    """Newest step of each metric. MLflow cannot delete points, and training is deterministic, so steps up to here are
    skipped when ``metrics.jsonl`` is copied again after a rewind."""
    ended: str = ""
    """Status in MLflow of a completely copied run; empty for others."""
    system: dict[str, int] = field(default_factory=dict)
    """Copied bytes of each node's system metrics."""
    model_id: str = ""
    """ID of the final net as a logged model, ready or not."""
    evaluations: int = 0
    """Number of evaluation records whose errors the graph's run and the logged model have."""

    @classmethod
    def of(cls, run: RunDirectory) -> MirrorState:
        """Reads the state of a run directory, or creates a new one. Raises UserError for a damaged file."""
        stored = run.read_json(_FILE) or {}  # older runs have further fields
        return cls(**{each.name: stored[each.name] for each in fields(cls) if each.name in stored})

    def save(self, run: RunDirectory) -> None:
        """Writes the state to the run directory."""
        run.write_json(_FILE, asdict(self))


def is_behind(run: RunDirectory, *, model: bool = False) -> bool:
    """Whether MLflow lacks records of a finished run, or with `model` its net, e.g. after a server failure."""
    state = MirrorState.of(run)
    if state.ended != "FINISHED" or (model and not state.model_id):
        return True
    return run.metrics.exists() and run.metrics.stat().st_size > state.bytes


class MlflowMirror:
    """Copies a run's ``metrics.jsonl`` and selected files to an MLflow run in a daemon thread.

    Numbers become metrics ``<kind>/<key>`` with the record's step and time; strings (including "nan") and events do
    not. MLflow's errors do not reach the caller. Each cause is logged once as a warning, and copying is retried after
    pauses of at most ``LONGEST_PAUSE_S`` seconds. After a permanent error, the next mirror of the directory retries.
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
        """Starts the mirror. Imports mlflow here (seconds), because concurrent imports in two threads can fail."""
        import_quietly()
        self._thread.start()

    def close(self, status: Status, timeout_s: float) -> bool:
        """Copies the remaining records and ends the MLflow run; returns whether that took at most ``timeout_s``."""
        self._status = status
        self._closing.set()
        self._thread.join(timeout_s)
        self._given_up.set()
        if not (self._done or self._refused):
            logger.warning("the copy to MLflow took over %g s; a later start continues %s", timeout_s, self.run.path)
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
        """Copies the records that MLflow lacks, and with a status ends the run. MLflow's exceptions propagate."""
        if self._client is None:
            self._client, self._experiment_id = connect(self.description)
        client = self._client
        with exclusive(self.run.path / ".mlflow.lock"):  # or a mirror that timed out and the next could create two runs
            if self._given_up.is_set():
                return
            if not self._state.run_id:
                self._state = self._begin_run(client)
            self._copy_metrics(client)
            self._copy_system_metrics(client)
            if status is None or self._given_up.is_set():
                return
            end(client, self._experiment_id, self._state.run_id, status)  # before artifacts, whose store may fail
            for path in (self.run.path / name for name in self.description.artifacts):
                if path.exists():
                    client.log_artifact(self._state.run_id, str(path))
            if status == "FINISHED":
                self._copy_results(client)
            self._state.ended = status
            self._state.save(self.run)

    def _begin_run(self, client: MlflowClient) -> MirrorState:
        state = MirrorState.of(self.run)
        state.ended = ""
        state.save(self.run)  # before the run is created, so that its key finds it if the response is lost
        run_id = begin(client, self._experiment_id, self.description, state.key)
        if run_id != state.run_id:  # a new run, another database, or a run that was deleted
            state = MirrorState(state.key, run_id)
            state.save(self.run)
        return state

    def _warn(self, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        signs = f"{getattr(error, 'error_code', '')} {text}"
        remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in signs), None)
        if remedy or isinstance(error, UserError):
            self._refused = True
            refusal = f"{shorten(text, 200, placeholder=' ...')}; {remedy}" if remedy else text
            if refusal not in _refusals:
                _refusals.add(refusal)
                logger.warning("MLflow rejects the copy, metrics.jsonl is complete: %s", refusal)
            return
        cause = re.sub(r"0x[0-9a-f]+|\d+", "", text)  # addresses and counts differ between attempts
        if cause not in self._warned and not self._given_up.is_set():
            self._warned.add(cause)
            logger.warning("MLflow lags behind, metrics.jsonl is complete, will try again: %s", text[:300])

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
                self._log(client, metrics)
                state.bytes, state.last_line = state.bytes + sum(map(len, lines)), lines[-1].decode("latin-1")
                for metric in metrics:
                    state.last_step[metric.key] = max(metric.step, state.last_step.get(metric.key, metric.step))
                if metrics:
                    state.save(self.run)

    def _copy_system_metrics(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        for file, prefix in metrics_files(self.run):
            with file.open("rb") as opened:
                opened.seek(self._state.system.get(file.name, 0))
                while lines := [line for line in itertools.islice(opened, LINES_PER_BATCH) if line.endswith(b"\n")]:
                    metrics = [
                        Metric(prefix + key, value, int(record["time"] * 1000), record["step"])
                        for record in complete_records(lines)
                        for key, value in record["metrics"].items()
                    ]
                    self._log(client, metrics)
                    self._state.system[file.name] = self._state.system.get(file.name, 0) + sum(map(len, lines))
                    self._state.save(self.run)

    def _log(self, client: MlflowClient, metrics: list[Metric]) -> None:
        """Logs metrics; after a crash before the state is saved, MLflow drops the exact repetitions."""
        for i in range(0, len(metrics), METRICS_PER_CALL):
            client.log_batch(self._state.run_id, metrics=metrics[i : i + METRICS_PER_CALL])

    def _copy_results(self, client: MlflowClient) -> None:
        """Logs the final net as a model, and its errors with the model and the graph's run."""
        state, described = self._state, self.description.model
        if described and described.final.exists():
            if not state.model_id:
                state.model_id = create_model(client, self._experiment_id, state.run_id, described)
                state.evaluations = 0
                state.save(self.run)
            upload_model(client, state.model_id, described)
        records = self.run.records("evaluation")
        errors: dict[str, float] = {}
        for record in records:
            errors |= {key: value for key, value in record.items() if _is_curve(key, value)}
        if len(records) > state.evaluations:
            self._copy_errors(client, errors, records[-1]["time"])
        if described and described.register and state.model_id:
            register(client, state.model_id, state.run_id, described, errors)
        state.evaluations = len(records)

    def _copy_errors(self, client: MlflowClient, errors: Mapping[str, float], time_s: float) -> None:
        from mlflow.entities import Metric

        run_id, now, dataset = self._state.run_id, int(time_s * 1000), self.description.dataset
        images = dict(zip(("dataset_name", "dataset_digest"), dataset_of(dataset), strict=True)) if dataset else {}
        if model := self._state.model_id:
            linked = [Metric(f"evaluation/{key}", value, now, 0, model, **images) for key, value in errors.items()]
            client.log_batch(run_id, linked)
        if graph := graph_of(client, run_id):
            name = self.description.name
            headlines = [Metric(f"{name}/{key}", errors[key], now, 0) for key in HEADLINES if key in errors]
            client.log_batch(graph, headlines)


def _metrics(line: bytes, last_step: Mapping[str, int]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    record = parse_record(line) or {}
    kind = record.get("kind")
    if kind == "event":  # charts of events would hide the curves
        return
    for name, value in record.items():
        if not _is_curve(name, value):
            continue
        key = f"{kind}/{name}"
        if kind == "evaluation" or record["step"] > last_step.get(key, -1):
            # At step 0 MLflow draws bars side by side instead of curves with a single point.
            step = 0 if kind == "evaluation" else record["step"]
            yield Metric(key, value, timestamp=int(record["time"] * 1000), step=step)


def _is_curve(name: str, value: object) -> bool:
    return name not in _NO_CURVES and not isinstance(value, bool) and isinstance(value, int | float)
