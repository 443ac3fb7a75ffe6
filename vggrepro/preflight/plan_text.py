"""A plan for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from vggrepro.preflight.cost import Binds, StagePlan
from vggrepro.preflight.machine import Machine
from vggrepro.preflight.plan import Cheaper, Plan


def render(made: Plan, machine: Machine) -> str:
    """For the terminal."""
    lines = [f"{machine.nodes} x {machine.gpus_per_node} GPUs ({'measured rate' if machine.measured else machine.gpu})"]
    head = (
        "stage",
        "after",
        "PFLOP",
        "images/s",
        "wall h",
        "GPU h",
        "binds",
        "exchange",
        "sent",
        "decode and read a node",
        "file system",
        "disk",
        "rate",
    )
    rows = [
        (
            one.name,
            one.depends_on or "-",
            _number((one.training_flop + one.evaluation_flop) / 1e15),
            f"{one.images_per_s:,.0f}",
            _number(one.wall_hours),
            _number(one.gpu_hours),
            one.binds,
            (f"{one.comm}: " if one.comm else "") + f"{one.exchange_ms:.1f} of {one.step_ms:.1f} ms",
            f"{one.sent_mb:,.0f} MB/step",
            f"{one.images_per_s_node:,.0f} images/s: {_cores(one)}, {_number(one.read_mb_per_s_node)} MB/s",
            f"{_number(one.read_mb_per_s)} MB/s",
            f"{_number(one.disk_gb)} GB",
            one.rate_from,
        )
        for one in made.stages
    ]
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    for row in (head, *rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    together = "stage" if made.most_stages_at_once == 1 else "stages"
    lines += [
        "",
        f"together      {_number(made.total_gpu_hours)} GPU-hours, {_number(made.disk_gb)} GB of disk"
        + (f", {_number(made.money)} at {machine.price:g} a GPU-hour" if made.money is not None else ""),
        f"wall time     {_number(made.wall_hours)} h on the critical path with up to {made.most_stages_at_once} "
        f"{together} at once, {_number(made.wall_hours_in_a_row)} h one after another",
        *(f"{'' if n else 'cheaper':14}{line}" for n, line in enumerate(cheaper_lines(made.cheaper))),
        *waiting_lines(made),
        "",
        "assumptions",
        *(f"  - {text}" for text in made.assumptions),
    ]
    return "\n".join(lines)


def cheaper_lines(found: Sequence[Cheaper]) -> list[str]:
    """What the graph would cost under other settings, ready to paste, for the terminal."""
    lines: list[str] = []
    for one in found:
        settings = " ".join(f"--set {setting}" for setting in one.settings)
        before = one.gpu_hours + one.saved_gpu_hours
        faithful = "no departure from the paper"
        lines.append(
            f"{settings}: saves {_number(one.saved_gpu_hours)} of {_number(before)} "
            f"GPU-hours and {_number(one.saved_wall_hours)} of {_number(one.wall_hours + one.saved_wall_hours)} h; "
            + (f"departs from the paper: {', '.join(one.departures)}" if one.departures else faithful)
            + f"; takes {one.decode_cores_node} cores a node to decode and {_number(one.read_mb_per_s)} MB/s to read"
        )
    return lines


def waiting_lines(made: Plan) -> list[str]:
    """Which GPUs wait for bytes, where fewer nodes would cost less and take little longer."""
    remedies: dict[Binds, str] = {
        "loader": "more cores a node (cluster.cpus_per_task) or fewer nodes cost less",
        "file system": "fewer nodes cost less and take little longer",
    }
    waiting = {part: [one.name for one in made.stages if one.binds == part] for part in remedies}
    return [
        f"{'waiting':14}the GPUs of {', '.join(names)} wait for the {part}: {remedies[part]}"
        for part, names in waiting.items()
        if names
    ]


def _cores(stage: StagePlan) -> str:
    """Those that a node needs to decode as fast as its GPUs train; where it has fewer, these as well."""
    needed = f"{stage.decode_cores_node} core{'' if stage.decode_cores_node == 1 else 's'}"
    if stage.cores_node is None or stage.cores_node >= stage.decode_cores_node:
        return needed
    return f"{stage.cores_node} cores, {stage.decode_cores_node} would keep up"


def _number(amount: float) -> str:
    """To three digits at least."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
