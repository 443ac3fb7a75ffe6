"""A program on this machine, alone or as several ranks under torchrun."""

import os
import subprocess
import sys
from pathlib import Path


def run_program(*program: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs a script, or `-m` and a module, with its arguments to its end: on the CPU, one thread a rank, in no job."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD"))}
    return subprocess.run(
        [sys.executable, *torchrun, *program],
        env=inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
