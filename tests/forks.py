"""One server of forks for all tests of a process: what it forks has everything imported, in a moment."""

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
"""Signals that the server does not hear, and what it forks only after `begin`: the product's own processes must not."""

ONE_THREAD_NO_GPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Variables of the environment."""

forks = multiprocessing.get_context("forkserver")


def start_fork_server() -> None:
    """Starts it, before anything else does with fewer modules, on one thread and no GPU; it imports meanwhile."""
    forks.set_forkserver_preload(list(_PRELOADED))
    resource_tracker.ensure_running()  # it takes a mask back
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        with pytest.MonkeyPatch.context() as patched:
            for name, text in ONE_THREAD_NO_GPU.items():
                patched.setenv(name, text)
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def set_up_fork() -> None:
    """In a forked process: signals that ask it to stop are for it, and what was imported is no garbage to look for."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)
    gc.freeze()
