"""System metrics are sampled to the run directory and mirrored."""

import json
import logging
import time
from pathlib import Path

import pytest

from vggrepro.ranks.topology import Topology
from vggrepro.storage import system_metrics
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.mirror import MlflowMirror
from vggrepro.storage.mlflow_run import RunDescription
from vggrepro.storage.system_metrics import sampled


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def sample(run: RunDirectory, topology: Topology, monkeypatch: pytest.MonkeyPatch, lines: int) -> list[dict]:
    monkeypatch.setattr(system_metrics, "SAMPLE_S", 0.01)
    with sampled(run, topology):
        until = time.monotonic() + 30
        while time.monotonic() < until and len(list(read(run))) < lines:
            time.sleep(0.01)
    return list(read(run))


def read(run: RunDirectory) -> list[dict]:
    files = sorted((run.path / "system").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_system_metrics_are_sampled_and_have_a_separate_prefix(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = sample(run, Topology(), monkeypatch, 3)
    assert [record["step"] for record in records] == list(range(len(records)))
    assert {"cpu_utilization_percentage", "system_memory_usage_megabytes", "network_receive_megabytes"} <= records[0][
        "metrics"
    ].keys()
    assert 0 < records[0]["metrics"]["system_memory_usage_percentage"] < 100
    longer = sample(run, Topology(), monkeypatch, len(records) + 2)  # goes on after an interruption
    assert [record["step"] for record in longer] == list(range(len(longer)))

    uri = f"sqlite:///{tmp_path}/mlruns.db"
    described = RunDescription(uri, "vgg", "D", {}, {}, tmp_path / "artifacts")
    for _ in range(2):  # the second finds nothing new
        mirror = MlflowMirror(run, described)
        mirror.start()
        assert mirror.close("FINISHED", 60.0)
    from mlflow import MlflowClient

    run_id = run.read_json("mlflow.json")["run_id"]
    points = MlflowClient(uri).get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in points] == list(range(len(longer)))
    assert points[0].timestamp == int(records[0]["time"] * 1000)


def test_the_first_rank_of_each_node_samples(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 2):
        sample(run, Topology(rank, 4, 0, 2), monkeypatch, rank // 2 + 1)
    assert sorted(file.name for file in (run.path / "system").iterdir()) == ["node_0.jsonl", "node_1.jsonl"]
    assert [prefix for _, prefix in system_metrics.metrics_files(run)] == ["system/node_0/", "system/node_1/"]
    before = read(run)
    with sampled(run, Topology(1, 4, 1, 2)):
        time.sleep(0.1)
    assert read(run) == before


def test_a_long_run_has_a_line_per_minute(monkeypatch: pytest.MonkeyPatch, run: RunDirectory) -> None:
    monkeypatch.setattr(system_metrics, "_LINES_PER_LENGTH", 1)
    sample(run, Topology(), monkeypatch, 8)
    gaps = [later["time"] - earlier["time"] for earlier, later in zip(read(run), read(run)[1:], strict=False)]
    assert min(gaps[-2:]) > 4 * 0.01 > 0, "six samples in a line, at the length of ten seconds each"


def test_a_full_disk_stops_the_samples_but_not_the_run(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(system_metrics, "SAMPLE_S", 0.01)
    run.path.mkdir()
    (run.path / "system").write_text("in the way")
    with caplog.at_level(logging.WARNING), sampled(run, Topology()):
        until = time.monotonic() + 30
        while time.monotonic() < until and not caplog.records:
            time.sleep(0.01)
    (record,) = caplog.records
    assert "system metrics stop, training continues" in record.getMessage()
