"""What a job does before and after its ranks: on its first machine, outside any container, with no more than Python.

    python -m launch.attempt begin RUN_DIRECTORY
    python -m launch.attempt settle RUN_DIRECTORY STATUS

An attempt is one start of a job. `begin` takes the run directory over for it. `settle` has the exit status of the ranks
and decides what becomes of the job, after asking SLURM what it has decided already: a job that its user has cancelled
must stay cancelled. Both leave a line in the run directory's attempts.jsonl.
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
"""Folder in a run directory where each rank leaves the reason of its failure."""
DONE = Path("submission", "done")
"""Written by rank 0 when all is done: an exit status of 0 is also what srun returns when it is ended itself."""
USER_STATUS = 2
_STOP_REQUESTED = {INTERRUPTED_STATUS, 128 + signal.SIGUSR2}
_SETTLED_WITHIN_S = 120

Outcome = Literal["finished", "goes on", "cancelled", "failed", "replaced"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job."""

    outcome: Outcome
    reason: str
    requeue: bool = False
    failed: bool = False
    """Whether the attempt counts as a failure."""


def judge(
    status: int, decided: slurm.Decision, error: str | None, *, progressed: bool, failures: int, max_failures: int
) -> Verdict:
    """The verdict on an attempt whose ranks ended with `status`.

    `failures` attempts before this one failed at the very point where the run now stands.
    """
    if status == 0:
        return Verdict("finished", "")
    if status == lease.LOST_STATUS:
        return Verdict("replaced", "another attempt has taken over")
    if decided == "requeued":
        return Verdict("goes on", "SLURM has requeued it: preempted, a machine lost, or by hand")
    if decided == "over":
        return Verdict("cancelled", "cancelled")
    if decided == "preempted":
        return Verdict("goes on", "preempted", requeue=True)
    if status == USER_STATUS:
        return Verdict("failed", error or "a setting or a file is wrong, see the log")
    if decided == "time limit":
        reason = "the time limit came before the ranks had left: raise cluster.warning_s"
    elif status in _STOP_REQUESTED:
        reason = "asked to stop: the time limit is near, or a signal"
    else:
        reason = f"{describe(status)} ({error})" if error and status > 128 else error or describe(status)
    failed = not (progressed and (status in _STOP_REQUESTED or decided == "time limit"))
    count = 1 if progressed else failures + 1
    if failed and count >= max_failures:
        times = "once" if count == 1 else f"{count} times in a row"
        return Verdict("failed", f"failed {times} without progress: {reason}", failed=True)
    return Verdict("goes on", reason, requeue=True, failed=failed)


def describe(status: int) -> str:
    """An exit status in words."""
    if status == 128 + signal.SIGTERM:  # srun reports the highest status, and ends the others by this signal
        return "a rank ended early, see the log"
    if status > 128 and (number := status - 128) in set(signal.Signals):
        hint = "; out of memory?" if number == signal.SIGKILL else ""
        return f"a rank {ending_of(-number)}{hint}"
    return f"a rank {ending_of(status)}"


def progress_of(directory: Path) -> list[int]:
    """How far a run has come, so that lists compare: step of the newest checkpoint, final net, what tests have stored.

    The last are two numbers: how many files, and a checksum of their names, for as many parts may have come as went.
    """
    run = RunDirectory(directory)
    names = [file.name for file in run.checkpoints.glob("*")]
    steps = [int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)\.pt", name))]
    stored = [str(file.relative_to(directory)) for file in run.results()]
    return [max(steps, default=0), int("final.pt" in names), len(stored), zlib.crc32("\n".join(stored).encode())]


def history(directory: Path) -> list[dict[str, Any]]:
    """The lines of attempts.jsonl, oldest first; torn ones are passed over."""
    try:
        return complete_records((directory / HISTORY).read_bytes().splitlines())
    except FileNotFoundError:
        return []


def failures_at(past: list[dict[str, Any]], job: str, progress: list[int]) -> int:
    """How many attempts of the job, the latest in a row, failed with the run standing where it stands now.

    An attempt that has begun and not ended lost its machine or was killed: a failure, too.
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
    """Adds a line to attempts.jsonl."""
    line = {"event": event, "attempt": attempt, "time": time.time(), "progress": progress_of(directory)} | more
    with (directory / HISTORY).open("a") as file:
        file.write(json.dumps(line) + "\n")


def begin(directory: Path, attempt: str, max_failures: int) -> int:
    """Takes the run directory over; 0, or the status to leave with when this attempt must not run."""
    job = attempt.split(":", maxsplit=1)[0]
    holder = lease.holder(directory)
    if holder and (other := holder.split(":")[0]) != job and other.isdigit():
        try:
            if slurm.is_alive(other):
                print(f"vggrepro: job {other} trains {directory}; this one leaves it alone", flush=True)
                return lease.LOST_STATUS
        except slurm.SlurmError as error:
            print(f"vggrepro: SLURM does not say whether job {other} still runs ({error})", flush=True)
    progress = progress_of(directory)
    failures = failures_at(history(directory), job, progress)
    lease.take(directory, attempt)
    (directory / DONE).unlink(missing_ok=True)
    shutil.rmtree(directory / ERRORS, ignore_errors=True)
    (directory / ERRORS).mkdir(parents=True)
    record(directory, "begins", attempt, host=socket.gethostname())
    if failures >= max_failures:
        reason = f"failed {failures} times in a row without progress: its machines were lost, or killed it"
        record(directory, "ends", attempt, outcome="failed", failed=True, reason=reason)
        print(f"vggrepro: {reason}", flush=True)
        return USER_STATUS
    return 0


def settle(directory: Path, attempt: str, status: int, max_failures: int) -> int:
    """Decides what becomes of the job; returns the status it ends with."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # an ending job has still to be settled
    job, restarts = attempt.split(":")
    if lease.holder(directory) != attempt:
        print("vggrepro: another attempt has taken the run directory over", flush=True)
        return status or lease.LOST_STATUS
    past = history(directory)
    mine = {line["event"]: line for line in past if line["attempt"] == attempt}
    if "ends" in mine:
        return status  # `begin` has refused it
    if status == 0 and not (directory / DONE).exists():
        status = 1
    progress = progress_of(directory)
    verdict = judge(
        status,
        slurm.decision(job, int(restarts)) if status else "running",
        first_error(directory),
        progressed="begins" not in mine or progress != mine["begins"]["progress"],
        failures=failures_at([line for line in past if line["attempt"] != attempt], job, progress),
        max_failures=max_failures,
    )
    if verdict.requeue:
        try:
            slurm.requeue(job)
        except slurm.SlurmError as error:
            verdict = Verdict("failed", f"{verdict.reason}; SLURM refuses to requeue it ({error}): submit it again")
    if lease.holder(directory) == attempt:
        record(directory, "ends", attempt, outcome=verdict.outcome, reason=verdict.reason, failed=verdict.failed)
    print(f"vggrepro: {verdict.outcome}{verdict.reason and f' ({verdict.reason})'}", flush=True)
    if verdict.requeue:
        # SLURM ends this job in a moment; one that ends by itself before that would have failed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if slurm.decision(job, int(restarts)) == "running":
            time.sleep(_SETTLED_WITHIN_S)
    return status or int(verdict.outcome != "finished")


def first_error(directory: Path) -> str | None:
    """The reason that explains the others: a user's mistake, else the one that came first."""
    texts = []
    for file in (directory / ERRORS).glob("*.json"):
        with suppress(OSError):
            texts.append(file.read_bytes())
    first = min(complete_records(texts), key=lambda error: (not error["user"], error["time"]), default=None)
    if first is None:
        return None
    return first["text"] if first["user"] else f"rank {first['rank']} on {first['host']}: {first['text']}"


def main(verb: str, directory: str, *more: str) -> int:
    """Runs a verb for the job of the environment."""
    attempt = os.environ[lease.VARIABLE]
    max_failures = int(os.environ["VGGREPRO_MAX_FAILURES"])
    try:
        if verb == "begin":
            return begin(Path(directory), attempt, max_failures)
        assert verb == "settle", verb
        return settle(Path(directory), attempt, int(*more), max_failures)
    except OSError as error:  # a full disk, say: nothing that another attempt would do better
        print(f"vggrepro: {error}", flush=True)
        return USER_STATUS


if __name__ == "__main__":
    make_ready("stdout", "stderr")  # what becomes of a job must not hang on the disk of its log
    sys.exit(main(*sys.argv[1:]))
