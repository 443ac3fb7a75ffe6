"""Fork server of a test process: its forks start at once with all modules imported."""

import gc
import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker

import pytest

_PRELOADED = (
    "vggrepro.training.loop",
    "vggrepro.evaluation.stage",
    "vggrepro.pipeline.graph",
    "vggrepro.cli.main",
    "nvidia.dali.fn",
    "torch._dynamo",
    "pyarrow",
)
_BLOCKED_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}
"""Signals that the server blocks, and its forks until `set_up_fork`."""

SINGLE_THREAD_NO_GPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Environment variables."""

forks = multiprocessing.get_context("forkserver")


def start_fork_server() -> None:
    """Starts the server on one thread without a GPU, before other code starts it with fewer modules."""
    forks.set_forkserver_preload(list(_PRELOADED))
    resource_tracker.ensure_running()  # its start unblocks signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        with pytest.MonkeyPatch.context() as patched:
            for name, text in SINGLE_THREAD_NO_GPU.items():
                patched.setenv(name, text)
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def set_up_fork() -> None:
    """Prepares a forked process: unblocks the signals that stop it, and hides imported modules from the collector."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)
    gc.freeze()
