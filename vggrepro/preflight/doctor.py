"""What on this machine or cluster will not work, found before a job is started, and the remedy."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vggrepro.config.recipes import Graph
from vggrepro.preflight.check import Check
from vggrepro.preflight.images import boxes, data_sets, images
from vggrepro.preflight.site import disk, home, host, mlflow, runs_folder, slurm
from vggrepro.preflight.software import gpus, packages


def examine(graph: Graph | None, root: Path) -> list[Check]:
    """All checks; of the machine, and of a configuration where one is given. `root` is the folder of runs."""
    examinations: list[Callable[[], Iterator[Check]]] = [
        packages,
        gpus,
        slurm,
        host,
        home,
        lambda: runs_folder(root),
        lambda: disk(graph, root),
        lambda: mlflow(graph, root),
    ]
    if graph:
        first = next(iter(graph.stages.values()))
        examinations.append(lambda: images(first))
        examinations += [partial(boxes, config) for config in graph.stages.values() if config.localisation][:1]
        examinations.append(lambda: data_sets(graph))
    checks: list[Check] = []
    for one in examinations:
        checks += one()
    return checks


def render(checks: list[Check]) -> str:
    """For the terminal."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:4}  {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':4}  {'':{width}}  -> {check.remedy}")
    return "\n".join(lines)
