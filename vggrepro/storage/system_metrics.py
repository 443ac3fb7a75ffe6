"""System metrics of each node during a run: GPU, memory, CPU, disk and network, from MLflow's sampler.

Local rank 0 appends them to a file of the run directory, which the mirror copies, so that training never waits for a
server.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vggrepro.ranks.topology import Topology
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.mlflow_run import import_quietly

SYSTEM = "system"
"""Folder in the run directory."""
SAMPLE_S = 10.0
_SINGLE_NODE = "machine"
"""Name of the file of a run on a single node."""
_MOST_SAMPLES = 6
_LINES_PER_LENGTH = 30
"""Lines after which each further line averages one more sample, from a line per sample up to a line per minute."""

logger = logging.getLogger(__name__)


def metrics_files(run: RunDirectory) -> Iterator[tuple[Path, str]]:
    """Yields the file of each node and the prefix of its metrics; MLflow shows metrics under `system/` separately."""
    for file in sorted((run.path / SYSTEM).glob("*.jsonl")):
        yield file, "system/" if file.stem == _SINGLE_NODE else f"system/{file.stem}/"


@contextmanager
def sampled(run: RunDirectory, topology: Topology) -> Iterator[None]:
    """Samples this node during the block in a daemon thread, on local rank 0 only."""
    if topology.local_rank:
        yield
        return
    name = _SINGLE_NODE if topology.world == topology.local_world else f"node_{topology.rank // topology.local_world}"
    stop = threading.Event()
    import_quietly()
    file = run.path / SYSTEM / f"{name}.jsonl"
    thread = threading.Thread(target=_sample, args=(file, stop), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)


def _sample(file: Path, stop: threading.Event) -> None:
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id="", sampling_interval=SAMPLE_S, tracking_uri="sqlite://")
        step = file.read_bytes().count(b"\n") if file.exists() else 0
        written = samples = 0
        while not stop.wait(monitor.sampling_interval):
            monitor.collect_metrics()
            samples += 1
            if samples >= min(_MOST_SAMPLES, 1 + written // _LINES_PER_LENGTH):
                record = {"step": step + written, "time": time.time(), "host": socket.gethostname()}
                line = json.dumps(record | {"metrics": monitor.aggregate_metrics()}) + "\n"
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a") as opened:
                    opened.write(line)
                for part in monitor.monitors:
                    part.clear_metrics()
                written, samples = written + 1, 0
    except Exception as error:  # training continues without a driver, disk space or a package
        logger.warning("system metrics stop, training continues: %s", error)
