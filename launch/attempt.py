"""Start and end of a job attempt, on the job's first machine, outside any container, with the standard library only.

    python -m launch.attempt begin RUN_DIRECTORY
    python -m launch.attempt settle RUN_DIRECTORY STATUS

An attempt is one start of a job. `begin` acquires the run directory. `settle` gets the exit status of the ranks and
decides whether the job is requeued; it queries SLURM first, because a job that its user has cancelled must stay
cancelled. Both append a line to the run directory's attempts.jsonl.
"""

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch import slurm
from vggrepro.errors import INTERRUPTED_STATUS, ending_of, make_ready
from vggrepro.storage import lease
from vggrepro.storage.directory import RunDirectory, complete_records

HISTORY = "attempts.jsonl"
ERRORS = Path("submission", "errors")
"""Folder of a run directory to which each rank writes the reason of its failure."""
DONE = Path("submission", "done")
"""Marker that rank 0 writes at the end: srun returns 0 also when it is terminated itself."""
USER_STATUS = 2
_STOP_REQUESTED = {INTERRUPTED_STATUS, 128 + signal.SIGUSR2}
_SETTLED_WITHIN_S = 120

Outcome = Literal["finished", "goes on", "cancelled", "failed", "replaced"]


@dataclass(frozen=True)
class Verdict:
    """Decision on a job after an attempt."""

    outcome: Outcome
    reason: str
    requeue: bool = False
    failed: bool = False
    """Whether the attempt counts as a failure."""


def judge(
    status: int, decided: slurm.Decision, error: str | None, *, progressed: bool, failures: int, max_failures: int
) -> Verdict:
    """Returns the verdict on an attempt whose ranks ended with `status`.

    `failures` is the number of earlier attempts in a row that failed at the run's current progress.
    """
    if status == 0:
        return Verdict("finished", "")
    if status == lease.LOST_STATUS:
        return Verdict("replaced", "another attempt has taken over")
    if decided == "requeued":
        return Verdict("goes on", "SLURM has requeued it after preemption, a node failure, or scontrol requeue")
    if decided == "over":
        return Verdict("cancelled", "cancelled")
    if decided == "preempted":
        return Verdict("goes on", "preempted", requeue=True)
    if status == USER_STATUS:
        return Verdict("failed", error or "a setting or a file is wrong, see the log")
    if decided == "time limit":
        reason = "the time limit expired before the ranks had stopped: raise cluster.warning_s"
    elif status in _STOP_REQUESTED:
        reason = "stopped by a signal, or because the time limit is near"
    else:
        reason = f"{describe(status)} ({error})" if error and status > 128 else error or describe(status)
    failed = not (progressed and (status in _STOP_REQUESTED or decided == "time limit"))
    count = 1 if progressed else failures + 1
    if failed and count >= max_failures:
        times = "once" if count == 1 else f"{count} times in a row"
        return Verdict("failed", f"failed {times} without progress: {reason}", failed=True)
    return Verdict("goes on", reason, requeue=True, failed=failed)


def describe(status: int) -> str:
    """Returns an exit status in words."""
    if status == 128 + signal.SIGTERM:  # srun reports the highest status, and terminates the others by this signal
        return "a rank ended early, see the log"
    if status > 128 and (number := status - 128) in set(signal.Signals):
        hint = "; out of memory?" if number == signal.SIGKILL else ""
        return f"a rank {ending_of(-number)}{hint}"
    return f"a rank {ending_of(status)}"


def progress_of(directory: Path) -> list[int]:
    """Measures a run's progress: newest checkpoint's step, final net (0 or 1), number and checksum of stored results.

    The checksum of the file names detects new parts when as many old ones have been removed.
    """
    run = RunDirectory(directory)
    names = [file.name for file in run.checkpoints.glob("*")]
    steps = [int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)\.pt", name))]
    stored = [str(file.relative_to(directory)) for file in run.results()]
    return [max(steps, default=0), int("final.pt" in names), len(stored), zlib.crc32("\n".join(stored).encode())]


def history(directory: Path) -> list[dict[str, Any]]:
    """Reads the records of attempts.jsonl, oldest first; skips torn lines."""
    try:
        return complete_records((directory / HISTORY).read_bytes().splitlines())
    except FileNotFoundError:
        return []


def failures_at(past: list[dict[str, Any]], job: str, progress: list[int]) -> int:
    """Counts the job's latest consecutive attempts that failed at the current progress.

    An attempt with a begin and no end was killed or lost its machine, and counts as a failure.
    """
    ended = {line["attempt"]: line for line in past if line["event"] == "ends"}
    count = 0
    for begun in reversed([line for line in past if line["event"] == "begins"]):
        if begun["attempt"].split(":")[0] != job:
            break
        end = ended.get(begun["attempt"])
        if (end or begun)["progress"] != progress:
            break
        count += end is None or end["failed"]
    return count


def record(directory: Path, event: str, attempt: str, **more: Any) -> None:
    """Appends a line to attempts.jsonl."""
    line = {"event": event, "attempt": attempt, "time": time.time(), "progress": progress_of(directory)} | more
    with (directory / HISTORY).open("a") as file:
        file.write(json.dumps(line) + "\n")


def begin(directory: Path, attempt: str, max_failures: int) -> int:
    """Acquires the run directory; returns 0, or the exit status if this attempt must not run."""
    job = attempt.split(":", maxsplit=1)[0]
    holder = lease.holder(directory)
    if holder and (other := holder.split(":")[0]) != job and other.isdigit():
        try:
            if slurm.is_alive(other):
                print(f"vggrepro: job {other} is training {directory}; this job stops", flush=True)
                return lease.LOST_STATUS
        except slurm.SlurmError as error:
            print(f"vggrepro: the state of job {other} is unknown: SLURM does not answer ({error})", flush=True)
    progress = progress_of(directory)
    failures = failures_at(history(directory), job, progress)
    lease.take(directory, attempt)
    (directory / DONE).unlink(missing_ok=True)
    shutil.rmtree(directory / ERRORS, ignore_errors=True)
    (directory / ERRORS).mkdir(parents=True)
    record(directory, "begins", attempt, host=socket.gethostname())
    if failures >= max_failures:
        reason = f"failed {failures} times in a row without progress: the nodes failed or killed it"
        record(directory, "ends", attempt, outcome="failed", failed=True, reason=reason)
        print(f"vggrepro: {reason}", flush=True)
        return USER_STATUS
    return 0


def settle(directory: Path, attempt: str, status: int, max_failures: int) -> int:
    """Decides whether the job is requeued; returns its exit status."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a job that is being terminated must still be settled
    job, restarts = attempt.split(":")
    if lease.holder(directory) != attempt:
        print("vggrepro: another attempt has acquired the run directory", flush=True)
        return status or lease.LOST_STATUS
    past = history(directory)
    events = {line["event"]: line for line in past if line["attempt"] == attempt}
    if "ends" in events:
        return status  # `begin` has refused it
    if status == 0 and not (directory / DONE).exists():
        status = 1
    progress = progress_of(directory)
    verdict = judge(
        status,
        slurm.decision(job, int(restarts)) if status else "running",
        first_error(directory),
        progressed="begins" not in events or progress != events["begins"]["progress"],
        failures=failures_at([line for line in past if line["attempt"] != attempt], job, progress),
        max_failures=max_failures,
    )
    if verdict.requeue:
        try:
            slurm.requeue(job)
        except slurm.SlurmError as error:
            verdict = Verdict("failed", f"{verdict.reason}; SLURM refused to requeue it ({error}): submit it again")
    if lease.holder(directory) == attempt:
        record(directory, "ends", attempt, outcome=verdict.outcome, reason=verdict.reason, failed=verdict.failed)
    print(f"vggrepro: {verdict.outcome}{verdict.reason and f' ({verdict.reason})'}", flush=True)
    if verdict.requeue:
        # SLURM terminates a requeued job in a moment; if it exited by itself before that, it would count as failed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if slurm.decision(job, int(restarts)) == "running":
            time.sleep(_SETTLED_WITHIN_S)
    return status or int(verdict.outcome != "finished")


def first_error(directory: Path) -> str | None:
    """Returns the root cause among the ranks' errors: a user's mistake, else the earliest."""
    texts = []
    for file in (directory / ERRORS).glob("*.json"):
        with suppress(OSError):
            texts.append(file.read_bytes())
    first = min(complete_records(texts), key=lambda error: (not error["user"], error["time"]), default=None)
    if first is None:
        return None
    return first["text"] if first["user"] else f"rank {first['rank']} on {first['host']}: {first['text']}"


def main(verb: str, directory: str, *more: str) -> int:
    """Runs `begin` or `settle` for the attempt named by the environment."""
    attempt = os.environ[lease.VARIABLE]
    max_failures = int(os.environ["VGGREPRO_MAX_FAILURES"])
    try:
        if verb == "begin":
            return begin(Path(directory), attempt, max_failures)
        assert verb == "settle", verb
        return settle(Path(directory), attempt, int(*more), max_failures)
    except OSError as error:  # e.g. a full disk: another attempt would fail in the same way
        print(f"vggrepro: {error}", flush=True)
        return USER_STATUS


if __name__ == "__main__":
    make_ready("stdout", "stderr")  # the decision on a job must not depend on the disk of its log
    sys.exit(main(*sys.argv[1:]))
