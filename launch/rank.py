"""Program of each rank of a job: a stage of a submitted graph, from the snapshot in its run directory.

srun python -m launch.rank RUN_DIRECTORY
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from launch.attempt import DONE, ERRORS, USER_STATUS
from launch.snapshot import GRAPH, STAGE
from vggrepro.errors import INTERRUPTED_STATUS, Interrupted, UserError, make_ready
from vggrepro.storage import lease


class Rank:
    """Callable that submitit pickles: a path only; code and state come from the run directory."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __call__(self) -> None:
        """Runs the stage; exits the process on failure, so that submitit does not replace the exit status."""
        make_ready("stdout", "stderr")
        status = run(Path(self.directory))
        if status:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def run(directory: Path) -> int:
    """Trains and evaluates the stage of a run directory and writes the graph's tables; returns the exit status."""
    # Until training handles signals, a signal ends this rank with the status that requeues the job.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: os._exit(INTERRUPTED_STATUS))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    try:
        from vggrepro.config.recipes import load_graph
        from vggrepro.pipeline.graph import write_tables
        from vggrepro.pipeline.session import open_session
        from vggrepro.pipeline.stage import evaluate_stage, train_stage
        from vggrepro.pipeline.tracking import catch_up
        from vggrepro.pipeline.transfer import transfer_together

        graph = load_graph(directory / GRAPH)
        name = (directory / STAGE).read_text().strip()
        config, parent = graph.stages[name], graph.parent_of(name)
        with open_session([config]) as session:
            train_stage(config, parent, session)
            evaluate_stage(config, parent, session)
            transfer_together(graph.stages.values(), session)
            if session.topology.is_first:
                done = [stage for stage in graph.stages.values() if (stage.directory / DONE).exists()]
                catch_up([*done, config], session.topology)
                write_tables(graph)
                (directory / DONE).touch()
    except (Interrupted, lease.LeaseLost) as stop:
        print(f"vggrepro: {stop}", file=sys.stderr)
        return INTERRUPTED_STATUS if isinstance(stop, Interrupted) else lease.LOST_STATUS
    except UserError as error:
        print(f"vggrepro: {error}", file=sys.stderr)
        _write_error(directory, str(error), user=True)
        return USER_STATUS
    except SystemExit as stop:  # the watch has reported which rank is missing
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        traceback.print_exc()
        _write_error(directory, f"{type(error).__name__}: {error}", user=False)
        return 1
    return 0


def _write_error(directory: Path, text: str, *, user: bool) -> None:
    """Writes the reason of this rank's failure, for `settle` and `status`."""
    rank = os.environ.get("SLURM_PROCID", "0")
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    first_line = (text.strip().splitlines() or [""])[0][:300]
    record = {"rank": int(rank), "host": host, "time": time.time(), "user": user, "text": first_line}
    try:
        (directory / ERRORS / f"{rank}.json").write_text(json.dumps(record))
    except OSError as error:  # the disk may be the cause of the failure
        print(f"vggrepro: {error}", file=sys.stderr)


if __name__ == "__main__":
    Rank(sys.argv[1])()
