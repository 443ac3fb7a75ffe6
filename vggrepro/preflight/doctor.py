"""Checks of the machine or cluster before a job is started, with remedies."""

from pathlib import Path

from vggrepro.config.recipes import Graph
from vggrepro.preflight.check import Check
from vggrepro.preflight.images import boxes, data_sets, images
from vggrepro.preflight.site import disk, home, host, mlflow, runs_folder, slurm
from vggrepro.preflight.software import gpus, packages


def examine(graph: Graph | None, root: Path) -> list[Check]:
    """Runs all checks, of the machine and of a configuration, if any. `root` is the folder of runs."""
    checks = [*packages(), *gpus(), slurm(), *host(), *home(), runs_folder(root), disk(graph, root)]
    checks.append(mlflow(graph, root))
    if graph:
        first, *others = graph.stages.values()
        checks += images(first)
        for config in [config for config in (first, *others) if config.localisation][:1]:
            checks += boxes(config)
        checks += data_sets(graph)
    return checks


def render(checks: list[Check]) -> str:
    """Formats the checks for the terminal."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:4}  {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':4}  {'':{width}}  -> {check.remedy}")
    return "\n".join(lines)
