"""Silent and dead ranks: the others name them and exit."""

import re
import signal
import time

import pytest
from training_runs import Fault, Ranks, StageFile, run_of

from vggrepro.ranks.watch import ABANDONED_STATUS


@pytest.mark.parametrize("fault", [Fault("step 8", signal.SIGSTOP, rank=1), Fault("step 8", None, rank=1)])
def test_a_silent_rank_is_named_and_the_others_handle_signals_and_exit(stage_file: StageFile, fault: Fault) -> None:
    file = stage_file("A", train={"iterations": 100_000, "rank_timeout_s": 6.0, "stall_after": 0})
    ranks = Ranks(file, world=2, fault=fault)
    try:
        run = run_of(file)
        while [record["step"] for record in run.records("train")][-1:] < [6]:
            assert ranks.processes[0].is_alive(), ranks.text()
            time.sleep(0.1)
        time.sleep(1)
        ranks.processes[0].terminate()  # its main thread is blocked in an all-reduce by now
        ranks.wait_for("asked to stop (SIGTERM)", timeout_s=3)
        ranks.processes[0].join(15)
        assert ranks.processes[0].exitcode == ABANDONED_STATUS
        assert re.search(r"rank 1 on \S+ has been silent for 6 s \(last seen: [^)]+\)", ranks.text())
    finally:
        ranks.kill()


def test_a_rank_that_dies_is_named(stage_file: StageFile) -> None:
    file = stage_file("A", train={"iterations": 100_000, "rank_timeout_s": 20.0, "stall_after": 0})
    ranks = Ranks(file, world=2, fault=Fault("step 8", signal.SIGKILL, rank=1))
    try:
        assert ranks.join(40)[1] == -signal.SIGKILL
        assert ranks.processes[0].exitcode == ABANDONED_STATUS
        assert re.search(r"rank 1 on \S+ is gone \(last seen: [^)]+\)", ranks.text()), ranks.text()
        assert "Traceback" not in ranks.text()
    finally:
        ranks.kill()
