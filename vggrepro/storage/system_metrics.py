"""What a machine does while a run goes on: GPU, memory, processor, disk and network, by MLflow's own sampler.

Rank 0 of each machine appends to a file of the run directory, and the mirror copies it: training waits for no server.
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
"""The folder of a run directory."""
SAMPLE_S = 10.0
_ALONE = "machine"
"""Name of the file of a run's only machine."""
_MOST_SAMPLES = 6
_LINES_PER_LENGTH = 30
"""Lines before one more sample is averaged in each: a long run has a line per minute, a short one a line per sample."""

logger = logging.getLogger(__name__)


def metrics_files(run: RunDirectory) -> Iterator[tuple[Path, str]]:
    """The files of a run's machines, and how the names of their metrics begin: `system/`, which MLflow shows apart."""
    for file in sorted((run.path / SYSTEM).glob("*.jsonl")):
        yield file, "system/" if file.stem == _ALONE else f"system/{file.stem}/"


@contextmanager
def sampled(run: RunDirectory, topology: Topology) -> Iterator[None]:
    """Samples this machine for as long as the block takes, on its first rank alone, in a daemon thread."""
    if topology.local_rank:
        yield
        return
    name = _ALONE if topology.world == topology.local_world else f"node_{topology.rank // topology.local_world}"
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
    except Exception as error:  # of a driver, a full disk, a package that is missing: training goes on
        logger.warning("system metrics end here, training goes on: %s", error)
