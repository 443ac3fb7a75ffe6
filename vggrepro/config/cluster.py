"""What is asked of SLURM."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from vggrepro.config.section import Positive, Section


class Cluster(Section):
    """What is asked of SLURM (`launch/submit.py`)."""

    nodes: Positive = 1
    gpus_per_node: Positive = 8
    """GPUs, and so ranks, on each machine."""
    hours: float = Field(default=24.0, gt=0)
    """Time limit of one job; a stage that takes longer comes back by itself until it is finished."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    cpus_per_task: Positive | None = None
    mem: Annotated[str | None, BeforeValidator(lambda mem: str(mem) if isinstance(mem, int) else mem)] = None
    """Memory of one node, in SLURM's notation: 64G; 0 is all of it."""
    array_parallelism: Positive | None = None
    """Most stages that run at the same time; default: all that can."""
    setup: tuple[str, ...] = ()
    """Shell lines that each job runs first: module load, source, export."""
    container: str | None = None
    """Image the ranks run in: a .sif file or a docker:// address with Apptainer, anything else with Pyxis."""
    sbatch: dict[str, Annotated[str, BeforeValidator(str)]] = Field(default_factory=dict)
    """Further options of sbatch by their long names; an empty text for those without a value."""
    warning_s: Positive = 180
    """Seconds before the time limit at which a job is told to save and leave."""
    max_failures: Positive = 3
    """Failures in a row without progress after which a stage is given up."""
