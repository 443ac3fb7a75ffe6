"""Settings of SLURM jobs."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from vggrepro.config.section import Positive, Section


class Cluster(Section):
    """Resources and options of the SLURM jobs (`launch/submit.py`)."""

    nodes: Positive = 1
    gpus_per_node: Positive = 8
    """GPUs on each node; each GPU runs one rank."""
    hours: float = Field(default=24.0, gt=0)
    """Time limit of a job, in hours. A stage that takes longer is requeued until it is finished."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    cpus_per_task: Positive | None = None
    mem: Annotated[str | None, BeforeValidator(lambda mem: str(mem) if isinstance(mem, int) else mem)] = None
    """Memory per node in SLURM's notation, e.g. 64G; 0 requests all of it."""
    array_parallelism: Positive | None = None
    """Maximum number of stages that run at the same time; default: no limit."""
    setup: tuple[str, ...] = ()
    """Shell lines that each job runs first, such as module load, source or export."""
    container: str | None = None
    """Container image for the ranks. Apptainer runs a .sif file or a docker:// address, Pyxis anything else."""
    sbatch: dict[str, Annotated[str, BeforeValidator(str)]] = Field(default_factory=dict)
    """Further sbatch options by their long names; the value of a flag is an empty string."""
    warning_s: Positive = 180
    """Seconds before the time limit at which a job is signalled to save a checkpoint and exit."""
    max_failures: Positive = 3
    """Consecutive failures without progress after which a stage is abandoned."""
