import contextlib
import http.server
import io
import json
import logging
import shlex
import shutil
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import free_port, modules_imported_by
from tiny import REPOSITORY

from vggrepro.errors import UserError
from vggrepro.storage import directory, mirror
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.environment import environment
from vggrepro.storage.mirror import MlflowMirror, is_behind
from vggrepro.storage.mlflow_run import RunDescription
from vggrepro.storage.tracking_uri import resolve_uri, ui_command

LONG_S = 60.0


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """URI of a migrated database, and the output of its migration."""
    root = tmp_path_factory.mktemp("with space")
    uri = resolve_uri(str(f"sqlite:///{root}/mlruns.db"), root)
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        mirror = mirror_of(RunDirectory(root / "first"), uri, name="first")
        mirror.start()
        assert mirror.close("FINISHED", LONG_S)
    return uri, err.getvalue() + out.getvalue()


@pytest.fixture
def uri(store: tuple[str, str]) -> str:
    return store[0]


@pytest.fixture
def closed_port() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def hanging_server() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def mirror_of(run: RunDirectory, uri: str, **changes: Any) -> MlflowMirror:
    described: dict[str, Any] = {"experiment": "vgg", "name": "D", "params": {}, "tags": {}} | changes
    return MlflowMirror(run, RunDescription(uri=uri, artifact_root=run.path.parent / "artifacts", **described))


def living(run: RunDirectory, uri: str, **changes: Any) -> MlflowMirror:
    """Starts a mirror that has copied all records and is running."""
    mirror = mirror_of(run, uri, **changes)
    mirror.start()
    mirror.copy()
    return mirror


def mirrored(run: RunDirectory, uri: str, **changes: Any) -> None:
    assert living(run, uri, **changes).close("FINISHED", LONG_S)


def train(run: RunDirectory, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run.append({"step": step, "kind": "train", "loss": 1 / step})


def history(run: RunDirectory, uri: str, key: str = "train/loss") -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    points = MlflowClient(uri).get_metric_history(run.read_json("mlflow.json")["run_id"], key)
    return [(point.step, point.value) for point in points]


def losses(first: int, last: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(first, last + 1)]


# The run directory


def test_append_and_read_back(run: RunDirectory) -> None:
    before = time.time()
    run.append({"step": 1, "kind": "train", "loss": 6.9})
    run.append({"step": 1, "kind": "event", "what": "naïve"})
    (train_record, event) = run.records()
    assert before <= train_record.pop("time") <= time.time()
    assert train_record == {"step": 1, "kind": "train", "loss": 6.9}
    assert run.records("event") == [event]
    assert event["what"] == "naïve"


def test_events_are_not_metrics() -> None:
    train = mirror._metrics(b'{"step": 1, "kind": "train", "loss": 6.9, "time": 1.0}', {})
    assert [(metric.key, metric.value) for metric in train] == [("train/loss", 6.9)]
    assert not list(mirror._metrics(b'{"step": 1, "kind": "event", "drop": 1, "time": 1.0}', {}))


def test_evaluations_have_no_step_in_mlflow() -> None:
    """MLflow draws metrics without steps as bars side by side."""
    line = b'{"step": 370, "kind": "evaluation", "dense_multi_Q_top1_error": 24.8, "n": 500, "time": 1.0}'
    metrics = [(metric.key, metric.value, metric.step) for metric in mirror._metrics(line, {})]
    assert metrics == [("evaluation/dense_multi_Q_top1_error", 24.8, 0), ("evaluation/n", 500, 0)]


def test_records_of_a_new_directory(run: RunDirectory) -> None:
    assert run.records() == []
    assert run.newest("train") is None
    run.rewind(0)
    assert not run.path.exists()


def test_non_finite_numbers_are_strings_in_strict_json(run: RunDirectory) -> None:
    run.append({"step": 1, "kind": "train", "loss": float("nan"), "norm": float("-inf")})
    run.write_json("result.json", {"interval": (float("inf"), 1.0)})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    record = json.loads(run.metrics.read_text(), parse_constant=refuse)
    assert (record["loss"], record["norm"]) == ("nan", "-inf")
    assert run.read_json("result.json") == {"interval": ["inf", 1.0]}


def lines_read(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[bytes]:
    """Collects the lines of metrics that a module parses from now on."""
    lines, real = list[bytes](), directory.parse_record

    def reading(line: bytes) -> dict[str, Any] | None:
        lines.append(line)
        return real(line)

    monkeypatch.setattr(module, "parse_record", reading)
    return lines


def test_the_newest_record_is_found_from_the_end(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status of 36 runs needs 36 lines, not millions of iterations."""
    train(run, 1, 500)
    run.append({"step": 500, "kind": "validation", "top1_error": 25.5})
    with run.metrics.open("ab") as file:
        file.write(b'{"step": 501, "kind": "train"')
    lines = lines_read(monkeypatch, directory)
    found = run.newest("train")
    assert found is not None
    assert (found["step"], found["loss"], len(lines)) == (500, 1 / 500, 3)
    assert run.newest("evaluation") is None
    run.metrics.write_bytes(b"")
    assert run.newest("train") is None


def test_only_records_of_a_rare_kind_are_parsed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    train(run, 1, 50)
    run.append({"step": 50, "kind": "event", "event": "validation"})
    run.append({"step": 50, "kind": "validation", "top1_error": 25.5})
    lines = lines_read(monkeypatch, directory)
    assert [record["kind"] for record in run.records("validation")] == ["validation"]
    assert len(lines) == 2


@pytest.mark.parametrize("torn", [b'{"step": 3, "ki', b'{"step": 3, "kind": "train", "what": "na\xc3'])
def test_an_incomplete_line_is_skipped_without_losing_the_next(run: RunDirectory, torn: bytes) -> None:
    train(run, 1, 2)
    with run.metrics.open("ab") as file:
        file.write(torn)
    assert [record["step"] for record in run.records()] == [1, 2]
    train(run, 3, 3)
    assert [record["step"] for record in run.records()] == [1, 2, 3]


def test_rewind_removes_later_steps_and_incomplete_lines(run: RunDirectory) -> None:
    train(run, 1, 5)
    remaining = run.records()[:3]
    with run.metrics.open("ab") as file:
        file.write(b'{"step": 2')
    run.rewind(3)
    assert run.records() == remaining
    assert run.metrics.read_bytes().endswith(b"}\n")
    train(run, 4, 4)
    assert [record["step"] for record in run.records()] == [1, 2, 3, 4]


def test_small_files(run: RunDirectory) -> None:
    assert run.read_json("config.json") is None
    run.write_json("config.json", {"seed": 1})
    run.write_json("config.json", {"seed": 2})
    assert run.read_json("config.json") == {"seed": 2}
    run.write_text("config.json", '{"seed":')
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        run.read_json("config.json")
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


def test_reading_creates_no_folders(run: RunDirectory) -> None:
    stores = (run.checkpoints, run.posteriors, run.boxes, run.features, run.transfers)
    assert not any(list(store.glob("*")) for store in stores)
    assert run.read_json("final.json") is None
    assert not run.records()
    assert not run.path.exists()


def test_a_failed_write_leaves_the_old_file(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("notes.txt", "old")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(directory.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        run.write_text("notes.txt", "new")
    assert [path.read_text() for path in run.path.iterdir()] == ["old"]


# The mirror


def test_import_is_light() -> None:
    assert not {"mlflow", "torch", "numpy"} & modules_imported_by("import vggrepro.storage.mirror")


def test_mlflow_prints_nothing(store: tuple[str, str]) -> None:
    assert store[1] == ""


def test_mirror_of_a_run(run: RunDirectory, uri: str) -> None:
    from mlflow import MlflowClient

    train(run, 1, 700)
    run.append({"step": 700, "kind": "validation", "top1_error": 25.5, "protocol": "dense", "best": True})
    run.append({"step": 701, "kind": "train", "loss": float("nan")})
    run.write_text("config.yaml", "net: D\n")
    shown = {"params": {"net": "D", "long": "x" * 7000}, "tags": {"S": "256"}, "artifacts": ("config.yaml", "missing")}
    mirror = mirror_of(run, uri, experiment="a new one", **shown)
    mirror.start()
    assert mirror.close("FINISHED", LONG_S)

    assert history(run, uri) == losses(1, 700)
    assert history(run, uri, "validation/top1_error") == [(700, 25.5)]
    client = MlflowClient(uri)
    found = client.get_run(run.read_json("mlflow.json")["run_id"])
    assert set(found.data.metrics) == {"train/loss", "validation/top1_error"}
    assert found.info.run_name == "D"
    assert found.info.status == "FINISHED"
    assert found.data.tags["S"] == "256"
    assert found.data.params["net"] == "D"
    assert found.data.params["long"].endswith("x…")
    assert [artifact.path for artifact in client.list_artifacts(found.info.run_id)] == ["config.yaml"]
    assert (run.path.parent / "artifacts/a new one" / found.info.run_id / "artifacts/config.yaml").exists()
    (point, *_) = client.get_metric_history(found.info.run_id, "validation/top1_error")
    assert point.timestamp == int(run.records("validation")[0]["time"] * 1000)


def test_a_later_mirror_continues_the_same_run(run: RunDirectory, uri: str) -> None:
    from mlflow import MlflowClient

    train(run, 1, 3)
    run.append({"step": 3, "kind": "evaluation", "top1_error": 30.0})
    mirrored(run, uri, params={"lr": "0.01"}, tags={"job": "1"})
    run_id = run.read_json("mlflow.json")["run_id"]
    train(run, 4, 6)
    run.append({"step": 2, "kind": "evaluation", "top1_error": 31.0})  # of an older checkpoint
    mirror = living(run, uri, params={"lr": "0.02", "new": "1"}, tags={"job": "2"})
    assert MlflowClient(uri).get_run(run_id).info.status == "RUNNING"
    assert mirror.close("KILLED", LONG_S)
    found = MlflowClient(uri).get_run(run_id)
    assert run.read_json("mlflow.json")["run_id"] == run_id
    assert history(run, uri) == losses(1, 6)
    assert sorted(history(run, uri, "evaluation/top1_error")) == [(0, 30.0), (0, 31.0)]
    assert found.info.status == "KILLED"
    assert found.data.params == {"lr": "0.01", "new": "1"}
    assert found.data.tags["job"] == "2"


def test_a_crash_before_the_state_is_saved_causes_no_duplicates(run: RunDirectory, uri: str) -> None:
    train(run, 1, 3)
    mirrored(run, uri)
    state = run.read_json("mlflow.json")
    run.write_json("mlflow.json", {"key": state["key"]})
    train(run, 4, 4)
    mirrored(run, uri)
    assert run.read_json("mlflow.json")["run_id"] == state["run_id"]
    assert history(run, uri) == losses(1, 4)


def test_a_copy_can_be_repeated_from_any_state(run: RunDirectory, uri: str) -> None:
    """Includes the state of an older run, which has a checksum of the copied bytes instead of the last line."""
    train(run, 1, 3)
    run.append({"step": 3, "kind": "evaluation", "top1_error": 30.0})
    mirrored(run, uri)
    state = run.read_json("mlflow.json")
    older = {key: state[key] for key in state if key != "last_line"} | {"crc32": 1, "had": {}}
    changed = [{**of, "bytes": bytes_} for of in (older, state) for bytes_ in (0, 20, 10**6)]
    for known in (state, older, *changed):
        run.write_json("mlflow.json", known)
        mirrored(run, uri)
        assert run.read_json("mlflow.json") == state
    assert history(run, uri) == losses(1, 3)
    assert history(run, uri, "evaluation/top1_error") == [(0, 30.0)]


def test_a_requeued_job_continues_after_the_last_line(
    run: RunDirectory, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job neither reads copied lines nor sends the figures of an evaluation again."""
    from mlflow import MlflowClient

    train(run, 1, 300)
    run.append({"step": 300, "kind": "evaluation", "top1_error": 30.0})
    mirrored(run, uri)
    sent: list[str] = []
    real = MlflowClient.log_batch

    def log_batch(self: MlflowClient, run_id: str, metrics: Any = (), **others: Any) -> None:
        sent.extend(f"{metric.key} {metric.step}" for metric in metrics)
        real(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    lines = lines_read(monkeypatch, mirror)
    mirrored(run, uri)
    assert (lines, sent) == ([], [])
    train(run, 301, 302)
    mirrored(run, uri)
    assert (len(lines), sent) == (2, ["train/loss 301", "train/loss 302"])


@pytest.mark.parametrize("retrained", [2, 12], ids=["shorter than before", "longer than before"])
def test_a_rewind_causes_no_duplicate_steps(run: RunDirectory, uri: str, retrained: int) -> None:
    train(run, 1, 10)
    mirrored(run, uri)
    run.rewind(4)
    train(run, 5, 4 + retrained)
    mirrored(run, uri)
    train(run, 5 + retrained, 20)
    mirrored(run, uri)
    assert history(run, uri) == losses(1, 20)


def test_rewind_during_a_running_mirror(run: RunDirectory, uri: str) -> None:
    train(run, 1, 10)
    mirror = living(run, uri)
    run.rewind(4)
    train(run, 5, 12)
    assert mirror.close("FINISHED", LONG_S)
    assert history(run, uri) == losses(1, 12)


def test_an_incomplete_line_is_not_copied(run: RunDirectory, uri: str) -> None:
    train(run, 1, 2)
    content = run.metrics.read_bytes()
    run.metrics.write_bytes(content[:-5])
    mirror = living(run, uri)
    assert history(run, uri) == losses(1, 1)
    with run.metrics.open("ab") as file:
        file.write(content[-5:])
    assert mirror.close("FINISHED", LONG_S)
    assert history(run, uri) == losses(1, 2)


def test_another_process_creates_the_experiment_first(
    run: RunDirectory, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    results = [None]
    real = MlflowClient.get_experiment_by_name
    monkeypatch.setattr(
        MlflowClient, "get_experiment_by_name", lambda self, name: results.pop() if results else real(self, name)
    )
    train(run, 1, 1)
    mirrored(run, uri, experiment="vgg")
    assert history(run, uri) == losses(1, 1)


def test_an_unreachable_server_neither_delays_training_nor_loses_records(
    run: RunDirectory, uri: str, closed_port: str, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = mirror_of(run, closed_port)
    mirror.start()
    begin = time.monotonic()
    train(run, 1, 100)
    assert time.monotonic() - begin < 1
    assert not mirror.close("FAILED", 2.5)
    assert time.monotonic() - begin < 6
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2  # several tries: one cause; the end
    assert "\n" not in caplog.records[0].getMessage()

    mirrored(run, uri)
    assert history(run, uri) == losses(1, 100)


def test_a_hanging_server_does_not_delay_the_end(run: RunDirectory, uri: str, hanging_server: str) -> None:
    mirror = mirror_of(run, hanging_server)
    mirror.start()
    train(run, 1, 5)
    begin = time.monotonic()
    assert not mirror.close("KILLED", 0.5)
    assert time.monotonic() - begin < 2
    mirrored(run, uri)
    assert history(run, uri) == losses(1, 5)


def test_a_timed_out_mirror_and_the_next_create_a_single_run(
    run: RunDirectory, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, a slow server has not responded at the end of training, and gets the next request during testing."""
    from mlflow import MlflowClient

    requested, answer = threading.Event(), threading.Event()
    real = MlflowClient.create_run

    def slow(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
        requested.set()
        answer.wait(LONG_S)
        return real(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "create_run", slow)
    train(run, 1, 3)
    first = mirror_of(run, uri, experiment="slow")
    first.start()
    assert requested.wait(LONG_S)
    assert not first.close("FINISHED", 0.1)
    second = mirror_of(run, uri, experiment="slow")
    second.start()
    threading.Timer(0.5, answer.set).start()
    begin = time.monotonic()
    assert second.close("FINISHED", LONG_S)
    assert time.monotonic() - begin > 0.4, "it waits for the first one's answer"
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("slow").experiment_id])
    assert (found.info.run_id, found.info.status) == (run.read_json("mlflow.json")["run_id"], "FINISHED")
    assert history(run, uri) == losses(1, 3)


def test_is_behind_detects_records_that_mlflow_lacks(run: RunDirectory, uri: str, closed_port: str) -> None:
    train(run, 1, 3)
    assert is_behind(run), "it was never asked"
    mirror = mirror_of(run, closed_port)
    mirror.start()
    assert not mirror.close("FINISHED", 0.1)
    assert is_behind(run)
    assert living(run, uri).close("KILLED", LONG_S)
    assert is_behind(run)
    mirrored(run, uri)
    assert not is_behind(run)
    living(run, uri)
    assert is_behind(run), "there is more to come"
    mirrored(run, uri)
    train(run, 4, 4)
    assert is_behind(run)


# What MLflow refuses for good


def refused(run: RunDirectory, uri: str, **changes: Any) -> None:
    """Starts a mirror that stops at once, and closes it without waiting."""
    mirror = mirror_of(run, uri, **changes)
    mirror.start()
    begin = time.monotonic()
    assert not mirror.close("FINISHED", LONG_S)
    assert time.monotonic() - begin < LONG_S / 2


def test_a_deleted_experiment_stops_the_mirror_until_it_is_restored(
    run: RunDirectory, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    train(run, 1, 3)
    mirrored(run, uri, experiment="deleted")
    first = run.read_json("mlflow.json")["run_id"]
    number = client.get_experiment_by_name("deleted").experiment_id
    client.delete_experiment(number)
    train(run, 4, 6)
    refused(run, uri, experiment="deleted")
    refused(run, uri, experiment="deleted")  # as a graph's next stage
    (record,) = caplog.records
    assert record.getMessage() == (
        f"MLflow rejects the copy, metrics.jsonl is complete: its experiment deleted is deleted; restore it "
        f"(`MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore --experiment-id {number}`), or set "
        f"another run.experiment"
    )
    assert is_behind(run)
    client.restore_experiment(number)
    mirrored(run, uri, experiment="deleted")
    assert (run.read_json("mlflow.json")["run_id"], history(run, uri)) == (first, losses(1, 6))
    assert not is_behind(run)


def test_an_experiment_deleted_during_the_run_stops_the_mirror(
    run: RunDirectory, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    train(run, 1, 3)
    mirror = living(run, uri, experiment="meanwhile")
    client.delete_experiment(client.get_experiment_by_name("meanwhile").experiment_id)
    train(run, 4, 6)
    begin = time.monotonic()
    assert not mirror.close("FINISHED", LONG_S)
    assert time.monotonic() - begin < LONG_S / 2
    (record,) = caplog.records
    assert "must be in the 'active' state" in record.getMessage()
    assert record.getMessage().endswith("; fix it in MLflow, then start again")


def test_a_database_of_another_version_of_mlflow_stops_the_mirror(
    run: RunDirectory, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "other.db")
    with contextlib.closing(sqlite3.connect(other)) as database, database:
        database.execute("update alembic_version set version_num = 'abc'")
    refused(run, f"sqlite:///{other}")
    (record,) = caplog.records
    assert "out-of-date database schema (found version abc" in record.getMessage()
    assert record.getMessage().endswith("use the MLflow that made the database, or set tracking.uri to another one")


@pytest.mark.parametrize(
    ("status", "words"), [(401, "set MLFLOW_TRACKING_USERNAME"), (403, "with write access"), (404, "tracking.uri")]
)
def test_a_server_that_denies_access_stops_the_mirror(
    run: RunDirectory, caplog: pytest.LogCaptureFixture, status: int, words: str
) -> None:
    with answering(status) as address:
        refused(run, address)
    (record,) = caplog.records
    assert words in record.getMessage()


def test_server_errors_are_retried(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    with answering(503) as address:
        mirror = mirror_of(run, address)
        mirror.start()
        assert not mirror.close("FAILED", 2.5)
    assert "will try again" in caplog.records[0].getMessage()


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """Server whose only response is not JSON."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()
            thread.join()


# Addresses and environment


def test_resolve_uri_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri("sqlite:///mine.db", tmp_path) == "sqlite:///mine.db"
    assert resolve_uri(None, tmp_path) == "http://server:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None, Path("runs")) == f"sqlite:///{tmp_path}/runs/mlruns.db"


@pytest.mark.parametrize("folder", ["mlruns", "./mlruns", "/data/mlruns", "file:///data/mlruns", "file:mlruns"])
def test_a_folder_is_not_a_tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    with pytest.raises(UserError, match=r"the tracking URI .* use sqlite:///"):
        resolve_uri(folder, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folder)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        resolve_uri(None, tmp_path)


@pytest.mark.parametrize("address", ["http://server:many", "http://[server:5000"])
def test_an_invalid_url_is_not_a_tracking_uri(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"is not a URL \(.*; correct it"):
        resolve_uri(address, tmp_path)


def test_ui_command_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my venv/bin/python"))
    monkeypatch.chdir(tmp_path)
    command = ui_command("sqlite:////my runs/mlruns.db")
    assert shlex.split(command) == [
        *("my venv/bin/mlflow", "ui", "--backend-store-uri", "sqlite:////my runs/mlruns.db"),
        *("--host", "127.0.0.1", "--port", "5000"),
    ]
    monkeypatch.chdir("/")
    assert shlex.split(ui_command("sqlite:///x.db"))[0] == str(tmp_path / "my venv/bin/mlflow").lstrip("/")
    assert ui_command("https://user:secret@server:5000/mlflow") == "https://server:5000/mlflow"


def test_environment() -> None:
    found = environment()
    json.dumps(found, allow_nan=False)
    assert found["torch"]
    assert found["cpus"]
    assert socket.gethostname() not in found.values()
    if (REPOSITORY / ".git").exists():
        assert len(str(found["git_commit"])) == 40
        assert isinstance(found["git_dirty"], bool)


def test_environment_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = environment()
    assert (found["git_commit"], found["git_dirty"]) == (None, None)
