"""Programs: `vggrepro` inside this process, any of them as processes and ranks, and scripts that stand in for some.

And calls that are made twice at the same time.
"""

import atexit
import fcntl
import json
import os
import pty
import runpy
import select
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from drawing import BLANK, figures_drawn_by
from forks import ONE_THREAD_NO_GPU, forks, set_up_fork

from vggrepro.cli import main as cli

_LEAVES_WITHIN_S = 2.0  # a rank that is asked to; less than one waits for the first to speak of a common mistake


class Command:
    """`vggrepro`, run inside this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._printed = monkeypatch, printed

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        self._printed.readouterr()  # what was printed before
        self._monkeypatch.setattr(sys, "argv", ["vggrepro", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *self._printed.readouterr()

    def json(self, *arguments: object) -> Any:
        """What it prints with --json."""
        status, out, err = self(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    def mistake(self, *arguments: object) -> str:
        """The one line that a user's mistake ends in."""
        status, out, err = self(*arguments)
        assert (status, out) == (2, ""), err
        assert err.count("\n") == 1, err
        return err


def call_in_two_threads(call: Callable[[], object]) -> None:
    """Makes a call twice at the same time; raises what it raises."""
    both_there = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(lambda: (both_there.wait(), call())) for _ in range(2)]:
            done.result()


def run_program(
    *program: object,
    ranks: int = 1,
    cwd: Path | None = None,
    check: bool = False,
    timeout: float = 900,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a script, or `-m` and a module, with its arguments to its end: on the CPU, one thread a rank, in no job.

    Under torchrun where there are several ranks; `variables` of the environment have the last word. It imports torch
    for each: where the process itself is not what is tested, `fork_program` does the same.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *torchrun, *map(str, program)],
        env=_environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
        cwd=cwd,
    )


def fork_program(
    *program: object, ranks: int = 1, cwd: Path | None = None, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """As `run_program`, in forks of a process that has imported everything, without drawing and without torchrun.

    As torchrun does, it ends the other ranks once one has failed; what all have printed is joined, rank by rank.
    """
    words, port = list(map(str, program)), free_port()
    with tempfile.TemporaryDirectory() as folder:
        printed = [(Path(folder, f"out{rank}"), Path(folder, f"err{rank}")) for rank in range(ranks)]
        running = []
        for rank, streams in enumerate(printed):
            places = rank_variables(rank, ranks, port) if ranks > 1 else {}
            arguments = (words, cwd or Path.cwd(), _environment() | places | variables, streams)
            for stream in streams:
                stream.touch()  # it may be ended before it begins
            running.append(forks.Process(target=_as_program, args=arguments, daemon=True))
            running[-1].start()
        until = time.monotonic() + timeout
        while any(one.is_alive() for one in running) and not any(one.exitcode for one in running):
            if time.monotonic() > until:
                for one in running:
                    one.kill()
                raise subprocess.TimeoutExpired(words, timeout)
            time.sleep(0.02)
        for one in running:
            one.terminate()
            one.join(_LEAVES_WITHIN_S)
            one.kill()
            one.join()
        out, err = ("".join(file.read_text() for file in files) for files in zip(*printed, strict=True))
    return subprocess.CompletedProcess(words, next((one.exitcode for one in running if one.exitcode), 0), out, err)


def run_on_terminal(*program: object, columns: int, cwd: Path | None = None, **variables: str) -> tuple[int, str]:
    """As `fork_program`, with a terminal of so many columns as standard error: the status, and all it was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: text for name, text in _environment().items() if name not in ("COLUMNS", "NO_COLOR")}
    streams = (Path(os.devnull), Path(os.ttyname(theirs)))
    arguments = (list(map(str, program)), cwd or Path.cwd(), environment | {"TERM": "xterm"} | variables, streams)
    running = forks.Process(target=_as_program, args=arguments, daemon=True)
    running.start()
    sent = b""
    while running.is_alive() or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.02)[0]:
            sent += os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    return running.exitcode or 0, sent.decode()


def _as_program(words: list[str], cwd: Path, environment: Mapping[str, str], streams: tuple[Path, Path]) -> None:
    """What python does with these words."""
    set_up_fork()
    atexit._clear()  # what the server has registered
    for number, file in enumerate(streams, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    # the fork server's own objects may be closed
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    try:
        with figures_drawn_by(BLANK):
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                sys.path.insert(0, str(Path(words[0]).parent))
                runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _environment() -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD"))}
    return inherited | ONE_THREAD_NO_GPU


def stream_breaking_code(*names: str, full: bool) -> str:
    """Statements after which these standard streams are closed, or lie on a full disk, as if from the beginning."""
    return f"""
import os, sys

for name in {names}:
    number = {{"stdout": 1, "stderr": 2}}[name]
    os.close(number)
    stream = None
    if {full}:
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        stream = open(number, "w", buffering=1, closefd=False)
    setattr(sys, name, stream)
    setattr(sys, f"__{{name}}__", stream)
"""


def modules_imported_by(statement: str) -> set[str]:
    """What a Python has imported once it has run a statement."""
    return set(run_program("-c", f"{statement}\nimport sys; print(*sys.modules)", check=True).stdout.split())


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What tells a process which rank it is, of several on this machine."""
    places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    named = {name: str(place) for name, place in places.items()}
    return named | {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}


def write_script(file: Path, script: str, shell: str = "/bin/sh") -> None:
    """A shell script that may be executed, in the place of a program."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!{shell}\n{script}\n")
    file.chmod(0o755)
