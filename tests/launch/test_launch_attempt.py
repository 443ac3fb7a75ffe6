"""Decisions on a job: the verdict, the count of failures, and the lease, with recorded answers of SLURM."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from launch import attempt, slurm
from launch.attempt import failures_at, first_error, judge, progress_of
from launch.slurm import read_decision
from vggrepro.errors import INTERRUPTED_STATUS
from vggrepro.storage import lease

# As printed by SLURM 22.05 from within the batch script, in the second after it happened.
RUNNING = "JobId=7 JobName=vgg.A Reason=None Dependency=(null) JobState=RUNNING Restarts=1 PreemptTime=None"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "running"),
        ({"Restarts=1": "Restarts=2", "RUNNING": "COMPLETING"}, "requeued"),
        ({"Restarts=1": "Restarts=2", "RUNNING": "PENDING"}, "requeued"),
        ({"RUNNING": "COMPLETING"}, "over"),  # scancel
        ({"RUNNING": "CANCELLED"}, "over"),
        ({"RUNNING": "COMPLETING", "PreemptTime=None": "PreemptTime=2026-11-22T10:37:44"}, "preempted"),
        ({"PreemptTime=None": "PreemptTime=2026-11-22T10:37:44"}, "preempted"),  # in its grace time
        ({"RUNNING": "COMPLETING", "Reason=None": "Reason=TimeLimit"}, "time limit"),
        ({"RUNNING": "TIMEOUT"}, "time limit"),
        ({RUNNING: ""}, "unknown"),
    ],
)
def test_slurms_decision(changed: dict[str, str], expected: str) -> None:
    shown = RUNNING
    for old, new in changed.items():
        shown = shown.replace(old, new)
    assert read_decision(shown, restarts=1) == expected


KILLED = 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("status", "decided", "outcome", "requeue", "failed"),
    [
        (0, "running", "finished", False, False),
        (INTERRUPTED_STATUS, "running", "goes on", True, False),
        (INTERRUPTED_STATUS, "requeued", "goes on", False, False),
        (INTERRUPTED_STATUS, "preempted", "goes on", True, False),
        (INTERRUPTED_STATUS, "over", "cancelled", False, False),
        (128 + signal.SIGUSR2, "running", "goes on", True, False),
        (KILLED, "time limit", "goes on", True, False),
        (KILLED, "running", "goes on", True, True),
        (KILLED, "over", "cancelled", False, False),
        (128 + signal.SIGTERM, "running", "goes on", True, True),  # a rank failed before the others listened
        (1, "unknown", "goes on", True, True),
        (2, "running", "failed", False, False),
        (lease.LOST_STATUS, "running", "replaced", False, False),
    ],
)
def test_verdict(status: int, decided: slurm.Decision, outcome: str, requeue: bool, failed: bool) -> None:
    verdict = judge(status, decided, None, progressed=True, failures=0, max_failures=3)
    assert (verdict.outcome, verdict.requeue, verdict.failed) == (outcome, requeue, failed)


@pytest.mark.parametrize("status", [1, KILLED, INTERRUPTED_STATUS])
def test_without_progress_the_third_time_is_the_last(status: int) -> None:
    verdicts = [
        judge(status, "running", "rank 3 on n7: OSError: x", progressed=False, failures=n, max_failures=3)
        for n in range(3)
    ]
    assert [verdict.requeue for verdict in verdicts] == [True, True, False]
    assert verdicts[2].outcome == "failed"
    assert verdicts[2].reason.startswith("failed 3 times in a row without progress: ")


def test_preemption_is_no_failure_however_often_it_comes() -> None:
    verdict = judge(INTERRUPTED_STATUS, "preempted", None, progressed=False, failures=99, max_failures=3)
    assert verdict.requeue


def test_reasons_say_what_is_known() -> None:
    def reason(status: int, error: str | None) -> str:
        return judge(status, "running", error, progressed=True, failures=0, max_failures=3).reason

    assert reason(KILLED, None) == "a rank was killed by SIGKILL; out of memory?"
    assert reason(KILLED, "rank 0 on n1: lost") == "a rank was killed by SIGKILL; out of memory? (rank 0 on n1: lost)"
    assert reason(1, "rank 0 on n1: lost") == "rank 0 on n1: lost"
    assert reason(76, None) == "a rank ended with status 76"


def begins(name: str, progress: list[int]) -> dict[str, Any]:
    return {"event": "begins", "attempt": name, "progress": progress}


def ends(name: str, progress: list[int], *, failed: bool) -> dict[str, Any]:
    return {"event": "ends", "attempt": name, "progress": progress, "failed": failed}


def test_failures_are_counted_where_the_run_stands() -> None:
    here, before = [1000, 0, 0], [500, 0, 0]
    past = [
        begins("7:0", before),
        ends("7:0", here, failed=True),
        begins("7:1", here),  # lost its machine
        begins("7:2", here),
        ends("7:2", here, failed=False),  # preempted
        begins("7:3", here),
        ends("7:3", here, failed=True),
    ]
    assert failures_at(past, "7", here) == 3
    assert failures_at(past, "7", [1500, 0, 0]) == 0, "progress starts the count anew"
    assert failures_at(past, "8", here) == 0, "and so does a new submission"


def test_progress_is_read_off_the_names_of_files(tmp_path: Path) -> None:
    assert progress_of(tmp_path) == [0, 0, 0, 0]
    assert not list(tmp_path.iterdir()), "reading makes no folders"
    (tmp_path / "checkpoints").mkdir()
    for name in ("step-00000900.pt", "step-00001000.pt", ".step-00002000.pt.77", "best.pt"):
        (tmp_path / "checkpoints" / name).touch()
    assert progress_of(tmp_path) == [1000, 0, 0, 0]
    (tmp_path / "checkpoints" / "final.pt").touch()
    (tmp_path / "posteriors").mkdir()
    (tmp_path / "posteriors" / "dense.npz").touch()
    (tmp_path / "posteriors" / ".half.npz").touch()
    assert progress_of(tmp_path)[:3] == [1000, 1, 1]


@pytest.mark.parametrize("store", ["posteriors", "boxes", "features", "transfers"])
def test_whatever_a_test_stores_is_progress(tmp_path: Path, store: str) -> None:
    """Else a job whose test is longer than its time limit is given up although it advances."""
    parts = tmp_path / store / "dense-Q37.parts"
    seen = [progress_of(tmp_path)]
    parts.mkdir(parents=True)
    (parts / "a.npz").touch()
    seen.append(progress_of(tmp_path))
    (parts / "a.npz").rename(parts.with_suffix(".npz"))  # as many files as before
    seen.append(progress_of(tmp_path))
    (parts / ".b.npz").touch()
    assert progress_of(tmp_path) == seen[-1], "a torn file is none"
    assert seen[0] != seen[1] != seen[2]


class FakeSlurm:
    """SLURM's answers, and what it was asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decided: slurm.Decision = "running"
        self.alive: set[str] = set()
        self.requeued: list[str] = []
        self.refuses = False
        monkeypatch.setattr(slurm, "decision", lambda job, restarts: self.decided)
        monkeypatch.setattr(slurm, "is_alive", lambda job: job in self.alive)
        monkeypatch.setattr(slurm, "requeue", self._requeue)
        monkeypatch.setattr(attempt.time, "sleep", lambda seconds: None)

    def _requeue(self, job: str) -> None:
        if self.refuses:
            raise slurm.SlurmError("Requested operation is presently disabled")
        self.requeued.append(job)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setattr(attempt.signal, "signal", lambda *_: None)
    return FakeSlurm(monkeypatch)


def test_a_crash_loop_ends(tmp_path: Path, fake: FakeSlurm) -> None:
    for restart in range(3):
        assert attempt.begin(tmp_path, f"7:{restart}", 3) == 0
        (tmp_path / attempt.ERRORS / "1.json").write_text(
            json.dumps({"rank": 1, "host": "n2", "time": 5.0, "user": False, "text": "OSError: no such device"})
        )
        assert attempt.settle(tmp_path, f"7:{restart}", 1, 3) != 0
    assert fake.requeued == ["7", "7"]
    last = attempt.history(tmp_path)[-1]
    assert last["outcome"] == "failed"
    assert "3 times in a row without progress: rank 1 on n2: OSError: no such device" in last["reason"]


def test_machines_lost_again_and_again_end_it_too(tmp_path: Path, fake: FakeSlurm) -> None:
    assert [attempt.begin(tmp_path, f"7:{restart}", 3) for restart in range(4)] == [0, 0, 0, 2]
    assert attempt.settle(tmp_path, "7:3", 2, 3) == 2
    assert fake.requeued == []
    assert "the nodes failed or killed it" in attempt.history(tmp_path)[-1]["reason"]


def test_a_step_that_was_ended_is_not_a_finished_one(tmp_path: Path, fake: FakeSlurm) -> None:
    attempt.begin(tmp_path, "7:0", 3)
    assert attempt.settle(tmp_path, "7:0", 0, 3) != 0
    assert fake.requeued == ["7"]
    attempt.begin(tmp_path, "7:1", 3)
    (tmp_path / attempt.DONE).touch()
    assert attempt.settle(tmp_path, "7:1", 0, 3) == 0
    assert attempt.history(tmp_path)[-1]["outcome"] == "finished"


def test_a_second_job_leaves_a_run_to_the_first(tmp_path: Path, fake: FakeSlurm) -> None:
    assert attempt.begin(tmp_path, "7:0", 3) == 0
    fake.alive = {"7"}
    assert attempt.begin(tmp_path, "8:0", 3) == lease.LOST_STATUS
    assert attempt.settle(tmp_path, "8:0", lease.LOST_STATUS, 3) == lease.LOST_STATUS
    assert lease.holder(tmp_path) == "7:0"
    fake.alive = set()
    assert attempt.begin(tmp_path, "8:0", 3) == 0


def test_a_replaced_attempt_settles_nothing(tmp_path: Path, fake: FakeSlurm) -> None:
    attempt.begin(tmp_path, "7:0", 3)
    attempt.begin(tmp_path, "7:1", 3)
    attempt.settle(tmp_path, "7:0", 1, 3)
    assert fake.requeued == []
    assert [line["attempt"] for line in attempt.history(tmp_path)] == ["7:0", "7:1"]


def test_a_forbidden_requeue_is_reported(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.refuses = True
    attempt.begin(tmp_path, "7:0", 3)
    assert attempt.settle(tmp_path, "7:0", INTERRUPTED_STATUS, 3) != 0
    assert "SLURM refused to requeue it" in attempt.history(tmp_path)[-1]["reason"]


def test_the_error_that_explains_the_others(tmp_path: Path) -> None:
    (tmp_path / attempt.ERRORS).mkdir(parents=True)
    assert first_error(tmp_path) is None

    def word(rank: int, time: float, *, user: bool) -> None:
        text = {"rank": rank, "host": f"n{rank}", "time": time, "user": user, "text": f"error {rank}"}
        (tmp_path / attempt.ERRORS / f"{rank}.json").write_text(json.dumps(text))

    word(0, 2.0, user=False)
    word(1, 1.0, user=False)
    assert first_error(tmp_path) == "rank 1 on n1: error 1"
    word(2, 3.0, user=True)
    assert first_error(tmp_path) == "error 2"
