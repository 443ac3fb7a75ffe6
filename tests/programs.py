"""Programs: `vggrepro` inside this process, any of them as processes and ranks, and scripts that stand in for some."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vggrepro.cli import main as cli


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


def run_program(
    *program: object,
    ranks: int = 1,
    cwd: Path | None = None,
    check: bool = False,
    timeout: float = 900,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a script, or `-m` and a module, with its arguments to its end: on the CPU, one thread a rank, in no job.

    Under torchrun where there are several ranks; `variables` of the environment have the last word.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD"))}
    return subprocess.run(
        [sys.executable, *torchrun, *map(str, program)],
        env=inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
        cwd=cwd,
    )


def modules_after(statement: str) -> set[str]:
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


def put_program(file: Path, script: str, shell: str = "/bin/sh") -> None:
    """A shell script that may be executed, in the place of a program."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!{shell}\n{script}\n")
    file.chmod(0o755)
