"""Runners of programs: `vggrepro` in this process, programs as processes or ranks, and scripts that replace them."""

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
from forks import SINGLE_THREAD_NO_GPU, forks, set_up_fork

from vggrepro.cli import main as cli

_TERMINATES_WITHIN_S = 2.0  # less than a rank waits for the first rank to report a common mistake


class Command:
    """Runs `vggrepro` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capture = monkeypatch, capture

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Returns the exit status, standard output and standard error."""
        self._capture.readouterr()  # drops earlier output
        self._monkeypatch.setattr(sys, "argv", ["vggrepro", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_error:
            cli.main()
        return int(exit_error.value.code or 0), *self._capture.readouterr()

    def json(self, *arguments: object) -> Any:
        """Returns the parsed output of `--json`."""
        status, out, err = self(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    def mistake(self, *arguments: object) -> str:
        """Returns the single line that reports a user's mistake."""
        status, out, err = self(*arguments)
        assert (status, out) == (2, ""), err
        assert err.count("\n") == 1, err
        return err


def call_in_two_threads(call: Callable[[], object]) -> None:
    """Calls a function twice at the same time; raises its errors."""
    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(lambda: (barrier.wait(), call())) for _ in range(2)]:
            future.result()


def run_program(
    *program: object,
    ranks: int = 1,
    cwd: Path | None = None,
    check: bool = False,
    timeout: float = 900,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a script, or `-m` and a module, until it exits: on the CPU, with one thread per rank, outside any job.

    Several ranks run under torchrun. `variables` override the environment. Each process imports torch; use
    `fork_program` unless the process itself is what is tested.
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
    """Does the same as `run_program` in forks of a process with all imports, without torchrun and without drawing.

    Terminates the other ranks after one has failed, like torchrun. The output is that of all ranks, in their order.
    """
    words, port = list(map(str, program)), free_port()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(Path(folder, f"out{rank}"), Path(folder, f"err{rank}")) for rank in range(ranks)]
        processes = []
        for rank, streams in enumerate(outputs):
            rank_environment = rank_variables(rank, ranks, port) if ranks > 1 else {}
            arguments = (words, cwd or Path.cwd(), _environment() | rank_environment | variables, streams)
            for stream in streams:
                stream.touch()  # the rank may be terminated before it opens them
            processes.append(forks.Process(target=_execute, args=arguments, daemon=True))
            processes[-1].start()
        deadline = time.monotonic() + timeout
        while any(process.is_alive() for process in processes) and not any(process.exitcode for process in processes):
            if time.monotonic() > deadline:
                for process in processes:
                    process.kill()
                raise subprocess.TimeoutExpired(words, timeout)
            time.sleep(0.02)
        for process in processes:
            process.terminate()
            process.join(_TERMINATES_WITHIN_S)
            process.kill()
            process.join()
        out, err = ("".join(file.read_text() for file in files) for files in zip(*outputs, strict=True))
    status = next((process.exitcode for process in processes if process.exitcode), 0)
    return subprocess.CompletedProcess(words, status, out, err)


def run_on_terminal(*program: object, columns: int, cwd: Path | None = None, **variables: str) -> tuple[int, str]:
    """Forks a program whose standard error is a terminal of this width; returns the status and the terminal's input."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: text for name, text in _environment().items() if name not in ("COLUMNS", "NO_COLOR")}
    streams = (Path(os.devnull), Path(os.ttyname(slave)))
    arguments = (list(map(str, program)), cwd or Path.cwd(), environment | {"TERM": "xterm"} | variables, streams)
    process = forks.Process(target=_execute, args=arguments, daemon=True)
    process.start()
    sent = b""
    while process.is_alive() or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.02)[0]:
            sent += os.read(master, 65536)
    os.close(slave)
    os.close(master)
    return process.exitcode or 0, sent.decode()


def _execute(words: list[str], cwd: Path, environment: Mapping[str, str], streams: tuple[Path, Path]) -> None:
    """Executes a script or a module like the python command."""
    set_up_fork()
    atexit._clear()  # handlers of the fork server
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
    return inherited | SINGLE_THREAD_NO_GPU


def stream_breaking_code(*names: str, full: bool) -> str:
    """Code that closes these standard streams, or puts them on a full disk, as if before the program's start."""
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
    """Modules that a new Python process has imported after a statement."""
    return set(run_program("-c", f"{statement}\nimport sys; print(*sys.modules)", check=True).stdout.split())


def free_port() -> int:
    """Free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_variables(rank: int, world: int, port: int) -> dict[str, str]:
    """Environment variables of a rank, if all ranks are on this machine."""
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    variables = {name: str(number) for name, number in numbers.items()}
    return variables | {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}


def write_script(file: Path, script: str, shell: str = "/bin/sh") -> None:
    """Writes an executable shell script, often in place of a program."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!{shell}\n{script}\n")
    file.chmod(0o755)
