"""Topology of the ranks, read from the launcher's environment variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vggrepro.errors import UserError


@dataclass(frozen=True)
class Topology:
    """Position of this process: `rank` of `world` ranks, `local_rank` of `local_world` on its node."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and messages to the user."""
        return self.rank == 0


def divisors(batch: int) -> str:
    """Lists the numbers of ranks that divide a batch evenly, for a message."""
    return ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)


def topology_of(environment: Mapping[str, str]) -> Topology:
    """Reads the topology from torchrun's variables, else from those of a SLURM step, else assumes a single process.

    A step may be smaller than its allocation, and a batch script is not a step. Raises UserError.
    """
    torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name in environment for name in torchrun):
        rank, world, local_rank, local_world = _numbers(environment, torchrun, "start the ranks with torchrun")
        if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
            given = _given(environment, torchrun)
            raise UserError(f"{given}: such a rank is impossible (ranks count from 0); start the ranks with torchrun")
        return Topology(rank, world, local_rank, local_world)
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return Topology()
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
    rank, world, local_rank, node = _numbers(environment, names, "start the ranks with srun")
    # SLURM abbreviates 2, 2, 2, 1 to "2(x3),1".
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks_per_node = [int(tasks) for tasks, times in counts for _ in range(int(times or 1))]
    if sum(tasks_per_node) != world or node >= len(tasks_per_node):
        raise UserError(
            f"SLURM_STEP_TASKS_PER_NODE={environment.get('SLURM_STEP_TASKS_PER_NODE')} does not add up to "
            f"SLURM_STEP_NUM_TASKS={world}; start the ranks with srun"
        )
    return Topology(rank, world, local_rank, tasks_per_node[node])


def _numbers(environment: Mapping[str, str], names: tuple[str, ...], advice: str) -> list[int]:
    present = [name for name in names if name in environment]
    if len(present) < len(names):
        missing = ", ".join(name for name in names if name not in environment)
        raise UserError(f"{present[0]} is set but {missing} is not; {advice}, or unset {present[0]}")
    try:
        return [int(environment[name]) for name in names]
    except ValueError:
        raise UserError(f"{_given(environment, names)}: expected whole numbers; {advice}") from None


def _given(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}={environment[name]}" for name in names)


def host_names(text: str) -> list[str]:
    """Expands SLURM's abbreviated lists of nodes: "n[1-2,07],m" is n1, n2, n07, m."""
    names = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        head, bracket, rest = item.partition("[")
        if not bracket:
            names.append(head)
            continue
        inner, _, tail = rest.partition("]")
        for part in inner.split(","):
            low, _, high = part.partition("-")
            middles = [f"{number:0{len(low)}d}" for number in range(int(low), int(high or low) + 1)]
            names += [head + middle + end for middle in middles for end in (host_names(tail) or [""])]
    return names
