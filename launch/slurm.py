"""What is asked of SLURM, and what it answers. Standard library only: it also runs on compute nodes, for `attempt`."""

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Decision = Literal["running", "requeued", "preempted", "time limit", "over", "unknown"]
"""What SLURM has decided about an attempt, whatever its ranks do: that it goes on, or how it has ended."""

_ENDED = ("CANCELLED", "TIMEOUT", "FAILED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
_PATIENCE_S = 60


class SlurmError(Exception):
    """SLURM refused or did not answer; the text is its last line."""


@dataclass(frozen=True)
class Job:
    """A job of ours that waits, runs or ends."""

    id: str
    state: str
    where: str
    """Its machines, or why it waits, in brackets."""


def ask(*command: str, patience_s: float = _PATIENCE_S) -> str:
    """Standard output of one of SLURM's programs. Raises SlurmError."""
    try:
        # a session of its own: the signal that ends this process group must not end the question
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
    """An option of sbatch by its long name; an empty text is none."""
    return f"--{name}" if value == "" else f"--{name}={value}"


def is_reachable() -> bool:
    """Whether SLURM is installed here and its controller answers."""
    if not shutil.which("sbatch"):
        return False
    try:
        return "UP" in ask("scontrol", "ping", patience_s=10)
    except SlurmError:
        return False


def key_of(run_directory: Path) -> str:
    """What jobs of a run directory carry as their comment, so that they are found whoever submitted them, and how."""
    return "vggrepro:" + hashlib.sha256(str(run_directory.resolve()).encode()).hexdigest()[:16]


def jobs() -> dict[str, Job]:
    """This user's jobs that are not over, by comment; the youngest of those that share one. Raises SlurmError."""
    found = {}
    for line in ask("squeue", "--me", "--noheader", "--sort=i", "--format=%i\x1f%T\x1f%R\x1f%k").splitlines():
        number, state, where, comment = line.split("\x1f")
        found[comment.strip()] = Job(number, state, where)
    return found


def is_alive(job: str) -> bool:
    """Whether a job waits or runs. Raises SlurmError when SLURM does not answer."""
    try:
        return bool(ask("squeue", "--noheader", f"--jobs={job}", "--states=PENDING,RUNNING,SUSPENDED,CONFIGURING"))
    except SlurmError as error:
        if "Invalid job id" in str(error):  # so long ago that SLURM has forgotten it
            return False
        raise


def decision(job: str, restarts: int) -> Decision:
    """What SLURM has decided about this attempt of a job; asked from within it."""
    try:
        shown = ask("scontrol", "show", "job", job, "--oneliner")
    except SlurmError:
        return "unknown"
    return read_decision(shown, restarts)


def read_decision(shown: str, restarts: int) -> Decision:
    """The decision, from what `scontrol show job` prints for an attempt after `restarts` restarts."""
    field = dict(re.findall(r"\b(JobState|Reason|Restarts|PreemptTime)=(\S*)", shown))
    if int(field.get("Restarts", 0)) > restarts:
        return "requeued"
    state = field.get("JobState", "")
    if state == "PREEMPTED" or field.get("PreemptTime", "None") not in ("None", "Unknown", ""):
        return "preempted"  # already, or at the end of its grace time
    # While its batch script still runs, a job that has ended shows COMPLETING, cancelled ones too.
    if state != "COMPLETING" and state not in _ENDED:
        return "running" if state else "unknown"
    return "time limit" if state == "TIMEOUT" or field.get("Reason") == "TimeLimit" else "over"


def requeue(job: str) -> None:
    """Puts a job back into its queue, under the same number. Raises SlurmError."""
    ask("scontrol", "requeue", job)
