"""Cost of a command, measured from outside its processes, so that it may be any program of any checkout."""

import json
import os
import platform
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_LOOK_S = 0.1


def measure(
    command: Sequence[str], environment: Mapping[str, str], log: Path, limit_s: float, good: Sequence[int]
) -> dict[str, Any]:
    """Runs a command, which is to end with a `good` status; its output goes to `log`, its last line may be JSON.

    Wall time; processor time, user and system, of it and its descendants; the peak of its memory: of a single process
    what was resident (and no less than this process has), of several what they had together at a time, looked at every
    100 ms, shared pages counted once; what they read by system calls; and what of it, or through memory maps, came from
    the disk. Nothing is dropped from the page cache before.
    """
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT, env=environment,
                                   stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        together, late = _watch(process.pid, started + limit_s)
    wall = time.perf_counter() - started
    io = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    record = {
        "wall_s": round(wall, 3),
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "memory_mb": round(max(used.ru_maxrss * 1024, together) / 1e6, 1),
        "read_mb": round(int(io["rchar"]) / 1e6, 1),
        "disk_mb": round(int(io["read_bytes"]) / 1e6, 1),
        "status": process.returncode,
        "load": round(os.getloadavg()[0], 1),
    }
    lines = log.read_text(errors="replace").splitlines() or [""]
    if lines[-1].startswith("{"):
        record["found"] = json.loads(lines[-1])
    if late:
        record["failed"] = f"not done within {limit_s:.0f} s"
    elif process.returncode not in good:
        record["failed"] = f"status {process.returncode}: {lines[-1][:300]}"
    return record


def _watch(pid: int, until: float) -> tuple[int, bool]:
    """Returns (peak bytes of all child processes together, whether they were terminated); does not reap the process."""
    end, most = os.pidfd_open(pid), 0
    try:
        while not select.select([end], [], [], _LOOK_S)[0]:
            if time.perf_counter() > until:
                os.killpg(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                return most, True
            if len(tree := list(_descendants(pid))) > 1:
                most = max(most, sum(map(_proportional_bytes, tree)))
    except BaseException:
        os.killpg(pid, signal.SIGKILL)
        raise
    finally:
        os.close(end)
    return most, False


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _descendants(int(child))


def _proportional_bytes(pid: int) -> int:
    """A process's memory, of a page that several share its part."""
    with suppress(OSError):  # it has just ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def machine() -> dict[str, Any]:
    """Returns the description of the machine."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    total = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "memory_gb": round(int(total) * 1024 / 1e9, 1),
        "python": platform.python_version(),
    }


def run(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Prepares files for later steps, unmeasured. Raises RuntimeError."""
    with log.open("wb") as output:
        done = subprocess.run(
            command, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if done.returncode:
        last = (log.read_text(errors="replace").splitlines() or [""])[-1][:300]
        raise RuntimeError(f"{shlex.join(command[-4:])[:120]} ended with status {done.returncode}: {last}")
