"""The mirror of a run directory in MLflow.

Training writes to the run directory and never waits for a server: a daemon thread copies what is new to MLflow, and a
later process on the same directory continues the same MLflow run where the copy stopped.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shlex
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from vggrepro.errors import UserError
from vggrepro.storage.directory import RunDirectory, parse_record
from vggrepro.storage.mirror_state import Progress, alone, refusal_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

POLL_S = 5.0
LONGEST_PAUSE_S = 60.0
LINES_PER_BATCH = 256
METRICS_PER_CALL = 1000  # MLflow's limit
KEY_TAG = "vggrepro.run_key"
_refusals: set[str] = set()
"""What this process has said: each of a graph's stages has a mirror, or several, and meets the same."""
_NO_CURVES = ("step", "time", "epoch", "seconds_left", "Q")  # straight lines all of them

logger = logging.getLogger(__name__)


class MlflowMirror:
    """Copies a run's ``metrics.jsonl`` and chosen files to one MLflow run, from a daemon thread.

    Numbers become metrics ``<kind>/<key>`` with the record's step and time; strings (so also "nan") and events do not.
    No error of MLflow's reaches the caller: each cause is logged once as one warning, and the copy is tried again after
    pauses of at most ``LONGEST_PAUSE_S`` seconds; where no waiting mends it, by the next mirror of the directory. Files
    queued by :meth:`log_artifacts` but not copied when the process ends must be queued again by the next one; metrics
    are caught up by themselves.

    Args:
        run: the directory to mirror; its ``mlflow.json`` holds the state of the copy.
        uri: tracking URI, see :func:`resolve_uri`.
        experiment: name of the MLflow experiment, created if need be.
        run_name: name of a new MLflow run; a continued one keeps its own.
        params: MLflow parameters; a continued run keeps the values that it has. Longer ones than MLflow takes end in
            an ellipsis.
        tags: MLflow tags; a continued run gets the new values.
        dataset: `dataset.json`: its source and fingerprint become the run's MLflow dataset; None: it gets none.
        artifact_root: folder for the artifacts of a new experiment in a SQLite database (a server has its own).
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        artifact_root: Path,
        dataset: Mapping[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.uri = uri
        self.experiment = experiment
        self.run_name = run_name
        self.params = params
        self.tags = tags
        self.artifact_root = artifact_root
        self.dataset = dataset

        self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
        self._turn = threading.Condition()  # guards the next six
        self._asked = 0
        self._answered = 0
        self._waiting = 0
        self._status: str | None = None
        self._abandoned = False
        self._refused = False

        self._artifacts: deque[Path] = deque()
        self._warned: set[str] = set()
        self._client: MlflowClient | None = None
        self._progress = Progress()
        self._inode: int | None = None

    def start(self) -> None:
        """Begin to mirror. Imports mlflow here (seconds), since imports racing in two threads can fail."""
        _import_quietly()
        self._thread.start()

    def log_artifacts(self, paths: Iterable[Path]) -> None:
        """Queue files or folders for copying: soon, and in :meth:`close` at the latest."""
        self._artifacts.extend(paths)

    def sync_now(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` seconds until MLflow has all that was appended and queued before; whether it has."""
        with self._turn:
            self._asked += 1
            self._waiting += 1
            ticket = self._asked
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._answered >= ticket or self._is_over(), timeout_s)
            self._waiting -= 1
            return self._answered >= ticket

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"], timeout_s: float) -> bool:
        """Copy the rest and end the MLflow run, within ``timeout_s`` seconds; whether it was done in time.

        If it was not, the thread gives up, and a later mirror of the same directory copies what is missing. What MLflow
        has refused for good is not waited for.
        """
        with self._turn:
            self._status = status
            done = self.sync_now(timeout_s)
            self._abandoned = True
            self._turn.notify_all()
        if not done and not self._refused:
            logger.warning(
                "MLflow did not take everything within %g s; to be continued from %s", timeout_s, self.run.path
            )
        return done

    def _is_over(self) -> bool:
        return self._refused or not self._thread.is_alive()

    def _loop(self) -> None:
        pause_s = POLL_S
        while True:
            with self._turn:
                ticket, status = self._asked, self._status
            try:
                self._copy(status)
                done = True
                pause_s = POLL_S
            except Exception as error:
                self._warn(error)
                done = False
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            with self._turn:
                if done and not self._abandoned:
                    self._answered = ticket
                self._turn.notify_all()
                if self._refused or self._abandoned or (done and status):
                    return
                if self._asked == ticket:
                    self._turn.wait(1.0 if self._waiting else pause_s)

    def _warn(self, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        if refusal := refusal_of(error, text):
            self._refused = True
            if refusal not in _refusals:
                _refusals.add(refusal)
                logger.warning("MLflow takes no more, metrics.jsonl is complete: %s", refusal)
            return
        cause = re.sub(r"0x[0-9a-f]+|\d+", "", text)  # addresses and counts differ at each try
        if cause not in self._warned and not self._abandoned:
            self._warned.add(cause)
            logger.warning("MLflow lags behind, metrics.jsonl is complete, will try again: %s", text[:300])

    def _copy(self, status: str | None) -> None:
        """One pass: what is new, and the final status, if any. Leaves early once abandoned."""
        self._client = self._client or self._connect()
        if self._client is None:
            return
        client, run_id = self._client, self._progress.run_id
        self._copy_metrics(client)
        if status and not self._abandoned:
            client.set_terminated(run_id, status)  # before the artifacts, whose store may fail on its own
        while self._artifacts and not self._abandoned:
            path = self._artifacts[0]
            if path.exists():
                client.log_artifact(run_id, str(path))
            else:
                logger.warning("%s does not exist and is not copied to MLflow", path)
            self._artifacts.popleft()
        if status and not self._abandoned:
            self._progress.ended = status
            self._save(self._progress)

    def _connect(self) -> MlflowClient | None:
        """The run's own in MLflow, found or created; None where the mirror has been given up by then."""
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        client = MlflowClient(tracking_uri=self.uri)
        experiment_id = self._experiment_id(client)
        with alone(self.run):
            if self._abandoned:
                return None
            progress = replace(Progress.of(self.run), ended="")
            progress.save(self.run)  # the key before the run: one whose creation was not acknowledged is found again
            found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{progress.key}'", max_results=1)
            tags = {KEY_TAG: progress.key}
            run = found[0] if found else client.create_run(experiment_id, tags=tags, run_name=self.run_name)
        run_id = run.info.run_id
        if run_id != progress.run_id:  # the first time, another database, or the run was deleted there
            progress = Progress(key=progress.key, run_id=run_id)
            self._save(progress)
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        client.log_batch(
            run_id,
            params=[
                Param(key, _shortened(value, MAX_PARAM_VAL_LENGTH))
                for key, value in self.params.items()
                if key not in run.data.params
            ],
            tags=[RunTag(key, _shortened(value, MAX_TAG_VAL_LENGTH)) for key, value in self.tags.items()],
        )
        if self.dataset and not run.inputs.dataset_inputs:
            client.log_inputs(run_id, [_dataset_input(self.dataset)])
        self._progress = progress
        return client

    def _experiment_id(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        folder = (self.artifact_root.absolute() / self.experiment).as_uri() if self.uri.startswith("sqlite:") else None
        if (experiment := client.get_experiment_by_name(self.experiment)) is None:
            try:
                return client.create_experiment(self.experiment, artifact_location=folder)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(self.experiment)  # another run was faster
                assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            place = f"MLFLOW_TRACKING_URI={shlex.quote(self.uri)} " if folder else ""
            command = f"{place}mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise UserError(
                f"its experiment {self.experiment} is deleted; restore it (`{command}`), or set another run.experiment"
            )
        return experiment.experiment_id

    def _copy_metrics(self, client: MlflowClient) -> None:
        progress = self._progress
        try:
            file = self.run.metrics.open("rb")
        except FileNotFoundError:
            return
        with file:
            self._notice_rewind(file)
            while not self._abandoned:
                file.seek(progress.bytes)
                lines = [line for line in itertools.islice(file, LINES_PER_BATCH) if line.endswith(b"\n")]
                if not lines:
                    return
                metrics = [metric for line in lines for metric in _metrics(line, progress.had)]
                # Sent again after a crash before _save, these make no second points: MLflow drops exact repetitions.
                for i in range(0, len(metrics), METRICS_PER_CALL):
                    client.log_batch(progress.run_id, metrics=metrics[i : i + METRICS_PER_CALL])
                for line in lines:
                    progress.bytes += len(line)
                    progress.crc32 = zlib.crc32(line, progress.crc32)
                for metric in metrics:
                    progress.last_step[metric.key] = max(metric.step, progress.last_step.get(metric.key, metric.step))
                self._save(progress)

    def _notice_rewind(self, file: BinaryIO) -> None:
        inode = os.fstat(file.fileno()).st_ino
        if inode == self._inode:
            return
        progress = self._progress
        if zlib.crc32(file.read(progress.bytes)) != progress.crc32:
            progress.bytes, progress.crc32, progress.had = 0, 0, dict(progress.last_step)
        self._inode = inode

    def _save(self, progress: Progress) -> None:
        if not self._abandoned:
            progress.save(self.run)


def _metrics(line: bytes, had: Mapping[str, int]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    record = parse_record(line) or {}
    if record.get("kind") == "event":  # a chart for each number of each event would bury the curves
        return
    for name, value in record.items():
        if name in _NO_CURVES or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        key = f"{record['kind']}/{name}"
        if record["step"] > had.get(key, -1):
            # without a step MLflow draws bars side by side, and not a curve of one point
            step = 0 if record["kind"] == "evaluation" else record["step"]
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
