"""Queries to SLURM and their results. Standard library only: it also runs on compute nodes, for `attempt`."""

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Decision = Literal["running", "requeued", "preempted", "time limit", "over", "unknown"]
"""SLURM's decision on an attempt, whatever its ranks do: it continues, or how it ended."""

_ENDED = ("CANCELLED", "TIMEOUT", "FAILED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
_PATIENCE_S = 60


class SlurmError(Exception):
    """Raised if SLURM refuses or does not answer; the text is its last line."""


@dataclass(frozen=True)
class Job:
    """A job of this project that is pending, running or ending."""

    id: str
    state: str
    where: str
    """Its nodes, or the reason why it is pending, in brackets."""


def query(*command: str, patience_s: float = _PATIENCE_S) -> str:
    """Runs a program of SLURM; returns its standard output. Raises SlurmError."""
    try:
        # in a new session: a signal that ends this process group must not end the query
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience_s, check=False, start_new_session=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{command[0]} ended with status {done.returncode}"]
        raise SlurmError(lines[-1])
    return done.stdout


def option(name: str, value: str | int) -> str:
    """Formats an option of sbatch by its long name; an empty value is left out."""
    return f"--{name}" if value == "" else f"--{name}={value}"


def is_reachable() -> bool:
    """Whether SLURM is installed and its controller answers."""
    if not shutil.which("sbatch"):
        return False
    try:
        return "UP" in query("scontrol", "ping", patience_s=10)
    except SlurmError:
        return False


def key_of(run_directory: Path) -> str:
    """Returns the comment that marks the jobs of a run directory, however they were submitted."""
    return "vggrepro:" + hashlib.sha256(str(run_directory.resolve()).encode()).hexdigest()[:16]


def jobs() -> dict[str, Job]:
    """Lists this user's active jobs by comment, the newest of those that share a comment. Raises SlurmError."""
    found = {}
    for line in query("squeue", "--me", "--noheader", "--sort=i", "--format=%i\x1f%T\x1f%R\x1f%k").splitlines():
        number, state, where, comment = line.split("\x1f")
        found[comment.strip()] = Job(number, state, where)
    return found


def is_alive(job: str) -> bool:
    """Whether a job is pending or running. Raises SlurmError if SLURM does not answer."""
    try:
        return bool(query("squeue", "--noheader", f"--jobs={job}", "--states=PENDING,RUNNING,SUSPENDED,CONFIGURING"))
    except SlurmError as error:
        if "Invalid job id" in str(error):  # SLURM purges old jobs
            return False
        raise


def decision(job: str, restarts: int) -> Decision:
    """Queries SLURM's decision on the running attempt of a job."""
    try:
        shown = query("scontrol", "show", "job", job, "--oneliner")
    except SlurmError:
        return "unknown"
    return read_decision(shown, restarts)


def read_decision(shown: str, restarts: int) -> Decision:
    """Parses the output of `scontrol show job` for an attempt after `restarts` restarts."""
    field = dict(re.findall(r"\b(JobState|Reason|Restarts|PreemptTime)=(\S*)", shown))
    if int(field.get("Restarts", 0)) > restarts:
        return "requeued"
    state = field.get("JobState", "")
    if state == "PREEMPTED" or field.get("PreemptTime", "None") not in ("None", "Unknown", ""):
        return "preempted"  # now, or at the end of its grace time
    # While its batch script still runs, an ended or cancelled job is COMPLETING.
    if state != "COMPLETING" and state not in _ENDED:
        return "running" if state else "unknown"
    return "time limit" if state == "TIMEOUT" or field.get("Reason") == "TimeLimit" else "over"


def requeue(job: str) -> None:
    """Requeues a job under the same number. Raises SlurmError."""
    query("scontrol", "requeue", job)
