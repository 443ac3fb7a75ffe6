"""A plan for the terminal, and what it assumes, in words."""

from collections.abc import Iterator, Mapping, Sequence

from vggrepro.config.recipes import Graph
from vggrepro.paper import facts
from vggrepro.preflight.cost import Binds, Cheaper, Plan, StagePlan
from vggrepro.preflight.machine import ACTION_PERSONS, DECODE_PER_CORE, LINK_GB_PER_S, LONG_SIDE, ImageSet, Machine


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
            _number((one.training_flop + one.evaluation_flop + one.features_flop) / 1e15),
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


def assumptions_of(
    graph: Graph, machine: Machine, sets: Mapping[str, ImageSet], stages: Sequence[StagePlan]
) -> tuple[str, ...]:
    """What the plan of these stages for these machines and images assumes, a sentence each."""
    nets = {config.model.net for config in graph.stages.values()}
    if machine.measured:
        given = ", ".join(f"{net}: {rate:g} images/s" for net, rate in machine.measured.items())
        rate = f"training speed as given ({given}, one GPU"
        rate += "); other nets in proportion to their FLOPs" if nets - machine.measured.keys() else ")"
    else:
        rate = (
            f"training speed is assumed, not measured: {machine.mfu:.0%} of the peak of {machine.gpu} in the stage's "
            f"train.precision (a roofline's figure for net D on an H100 in bf16; it says little of other devices)"
        )
    data = dict.fromkeys(map(str, sets.values()))
    images = sum(config.train.iterations * config.train.batch for config in graph.stages.values())
    network = (
        f"{machine.node_gb_per_s:g} GB/s each way and node" if machine.nodes > 1 else f"{LINK_GB_PER_S:g} GB/s a GPU"
    )
    factors = any(stage.comm == "factor" for stage in stages)
    return (
        rate,
        f"every stage trains its full train.iterations ({images:,} images together); no time lost in queues",
        f"gradients are exchanged by rings at {network}, hidden behind the backward pass (two thirds of a step)"
        + (", and by factor every GPU then forms the FC layers' gradients of the whole batch" if factors else ""),
        f"{' and '.join(data)}; "
        + ("no data.index is given; " if any(one.startswith("ILSVRC") for one in data) else "")
        + f"uncropped images have sides 1:{LONG_SIDE}",
        "validation runs at the training speed, by FLOPs; tests do, too, but for what the GPU's peak is lower in "
        "evaluation.precision; starting, saving and drawing take no time",
        _loading(machine, stages),
        f"a GPU has {_per_gpu(graph, machine)} images of each batch; with few, kernels reach less of the peak, and "
        f"the update of the weights, not counted here, weighs more",
        "parameters, momentum and posteriors are 4 bytes each; multi-crop testing, 50 crops a Q, is not included",
        *_others(sets),
    )


def _others(sets: Mapping[str, ImageSet]) -> Iterator[str]:
    """Of the data sets that features are tested on, a sentence; and one of the linear SVMs."""
    counts = {name: images for one in sets.values() for name, images in one.others.items()}
    if not counts:
        return
    action = f" and the boxes of {ACTION_PERSONS:,} persons, as if they were images"
    known = [
        f"{name} {images:,}" + (action if name == "voc2012_action" else "")
        for name, images in counts.items()
        if images is not None
    ]
    nets = [name for name, one in sets.items() if one.others]
    told = f"features of {', '.join(nets)} are taken of other data sets' images, 4 bytes a unit: {', '.join(known)}"
    if unknown := [name for name, images in counts.items() if images is None]:
        told += f"{'; ' if known else ''}not counted, and so not included: {', '.join(unknown)}"
    yield told
    svms = "linear SVMs on features are trained on one node's CPU while its GPUs wait, and are in no hours here"
    if "caltech256" in counts:
        from vggrepro.evaluation.svm import C_GRID

        svms += (
            f": those of caltech256 take tens of CPU hours a split with all {facts().transfer['caltech256'].classes} "
            f"classes and {len(C_GRID)} values of C (measured: about 25 s a class and C at a quarter of its training "
            f"rows), divided by the cores"
        )
    yield svms


def _loading(machine: Machine, stages: Sequence[StagePlan]) -> str:
    """What decodes and reads, and how fast."""
    if machine.decode_per_core == DECODE_PER_CORE:
        rate = (
            f"a core decodes {DECODE_PER_CORE:g} images/s with DALI, by measurements with photographs of 29 kB on a "
            f"Xeon (2026-11-22); larger ones take longer: measure with `vggrepro bench loader`, give --decode-rate"
        )
    else:
        rate = f"a core decodes {machine.decode_per_core:g} images/s, as given"
    cores = {stage.cores_node for stage in stages}
    known = " or ".join(f"{n} cores a node decode" for n in sorted(cores - {None}))  # type: ignore[type-var]
    have = known or "how many cores a node has is not known (cluster.cpus_per_task)"
    read = "" if machine.read_mb_per_s is None else f"; the file system gives {machine.read_mb_per_s:g} MB/s, as given"
    return f"{rate}; {have}{read}"


def _per_gpu(graph: Graph, machine: Machine) -> str:
    shares = {config.train.batch // machine.gpus for config in graph.stages.values()}
    return " or ".join(map(str, sorted(shares)))
