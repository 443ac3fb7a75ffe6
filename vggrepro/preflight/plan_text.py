"""Plans and their assumptions as text."""

from collections.abc import Iterator, Mapping, Sequence

from vggrepro.config.recipes import Graph
from vggrepro.paper import facts
from vggrepro.preflight.cost import Binds, Cheaper, Plan, StagePlan
from vggrepro.preflight.machine import ACTION_PERSONS, DECODE_PER_CORE, LINK_GB_PER_S, LONG_SIDE, ImageSet, Machine


def render(made: Plan, machine: Machine) -> str:
    """Formats a plan for the terminal."""
    rows = [
        {
            "stage": stage.name,
            "after": stage.depends_on or "-",
            "PFLOP": _number((stage.training_flop + stage.evaluation_flop + stage.features_flop) / 1e15),
            "images/s": f"{stage.images_per_s:,.0f}",
            "wall h": _number(stage.wall_hours),
            "GPU h": _number(stage.gpu_hours),
            "binds": stage.binds,
            "exchange": f"{f'{stage.comm}: ' if stage.comm else ''}{stage.exchange_ms:.1f} of {stage.step_ms:.1f} ms",
            "sent": f"{stage.sent_mb:,.0f} MB/step",
            "decode and read per node": f"{stage.images_per_s_node:,.0f} images/s: {_cores(stage)}, "
            f"{_number(stage.read_mb_per_s_node)} MB/s",
            "file system": f"{_number(stage.read_mb_per_s)} MB/s",
            "disk": f"{_number(stage.disk_gb)} GB",
            "rate": stage.rate_from,
        }
        for stage in made.stages
    ]
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    money = "" if made.money is None else f", {_number(made.money)} at {machine.price:g} per GPU-hour"
    together = "stage" if made.most_stages_at_once == 1 else "stages"
    return "\n".join(
        [
            f"{machine.nodes} x {machine.gpus_per_node} GPUs ({'measured rate' if machine.measured else machine.gpu})",
            *("  ".join(map(str.ljust, row, widths)).rstrip() for row in table),
            "",
            f"together      {_number(made.total_gpu_hours)} GPU-hours, {_number(made.disk_gb)} GB of disk{money}",
            f"wall time     {_number(made.wall_hours)} h on the critical path with up to {made.most_stages_at_once} "
            f"{together} at once, {_number(made.wall_hours_in_a_row)} h one after another",
            *(f"{'' if n else 'cheaper':14}{line}" for n, line in enumerate(cheaper_lines(made.cheaper))),
            *_waiting_lines(made),
            "",
            "assumptions",
            *(f"  - {text}" for text in made.assumptions),
        ]
    )


def cheaper_lines(found: Sequence[Cheaper]) -> list[str]:
    """Formats cheaper settings, ready to paste."""
    lines = []
    for change in found:
        settings = " ".join(f"--set {setting}" for setting in change.settings)
        departures = f"departs from the paper: {', '.join(change.departures)}"
        lines.append(
            f"{settings}: saves {_number(change.saved_gpu_hours)} of "
            f"{_number(change.gpu_hours + change.saved_gpu_hours)} GPU-hours and {_number(change.saved_wall_hours)} of "
            f"{_number(change.wall_hours + change.saved_wall_hours)} h; "
            f"{departures if change.departures else 'no departure from the paper'}; needs "
            f"{change.decode_cores_node} cores per node to decode and {_number(change.read_mb_per_s)} MB/s to read"
        )
    return lines


def _waiting_lines(made: Plan) -> Iterator[str]:
    """Reports GPUs that wait for data, where fewer nodes would cost less."""
    remedies: dict[Binds, str] = {
        "loader": "more cores per node (cluster.cpus_per_task) or fewer nodes cost less",
        "file system": "fewer nodes cost less and take little longer",
    }
    for part, remedy in remedies.items():
        if names := [stage.name for stage in made.stages if stage.binds == part]:
            yield f"{'waiting':14}the GPUs of {', '.join(names)} wait for the {part}: {remedy}"


def _cores(stage: StagePlan) -> str:
    """Formats the cores that a node needs to decode as fast as its GPUs train, and those it has if fewer."""
    needed = stage.decode_cores_node
    if stage.cores_node is None or stage.cores_node >= needed:
        return f"{needed} core{'' if needed == 1 else 's'}"
    return f"{stage.cores_node} cores, {needed} would keep up"


def _number(amount: float) -> str:
    """Formats a number to at least three digits."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def assumptions_of(
    graph: Graph, machine: Machine, sets: Mapping[str, ImageSet], stages: Sequence[StagePlan]
) -> tuple[str, ...]:
    """Lists the assumptions of a plan, a sentence each."""
    configs = graph.stages.values()
    if machine.measured:
        given = ", ".join(f"{net}: {rate:g} images/s" for net, rate in machine.measured.items())
        others = {config.model.net for config in configs} - machine.measured.keys()
        rate = f"training speed as given ({given}, one GPU)"
        rate += "; other nets in proportion to their FLOPs" if others else ""
    else:
        rate = (
            f"training speed is assumed, not measured: {machine.mfu:.0%} of the peak of {machine.gpu} in the stage's "
            f"train.precision (a roofline's figure for net D on an H100 in bf16; not representative of other devices)"
        )
    data = dict.fromkeys(map(str, sets.values()))
    images = sum(config.train.iterations * config.train.batch for config in configs)
    network = (
        f"{machine.node_gb_per_s:g} GB/s per direction and node"
        if machine.nodes > 1
        else f"{LINK_GB_PER_S:g} GB/s per GPU"
    )
    factors = any(stage.comm == "factor" for stage in stages)
    bookkeeping = 3600 * max(stage.bookkeeping_hours for stage in stages)
    shares = sorted({config.train.batch // machine.gpus for config in configs})
    return (
        rate,
        f"every stage trains its full train.iterations ({images:,} images together); no time lost in queues",
        f"gradients are exchanged by rings at {network}, hidden behind the backward pass (two thirds of a step)"
        + (", and by factor every GPU then forms the FC layers' gradients of the full batch" if factors else ""),
        f"{' and '.join(data)}; "
        + ("no data.index is given; " if any(name.startswith("ILSVRC") for name in data) else "")
        + f"uncropped images have sides 1:{LONG_SIDE}",
        "validation runs at the training speed, by FLOPs; so do tests, except that the GPU's peak may be lower in "
        "evaluation.precision",
        f"starting a stage, storing its results and reporting take {bookkeeping:.0f} s, in which its GPUs wait "
        f"(measured at ILSVRC's size on two cores, docs/full_size.md); checkpoints are written while training "
        f"continues",
        _loading(machine, stages),
        f"each GPU processes {' or '.join(map(str, shares))} images per batch; with fewer, kernels reach less of the "
        f"peak, and the update of the weights, not counted here, weighs more",
        "parameters, momentum and posteriors are 4 bytes each; multi-crop testing, 50 crops per Q, is not included",
        *_other_data_sets(sets),
    )


def _other_data_sets(sets: Mapping[str, ImageSet]) -> Iterator[str]:
    """Yields a sentence on the data sets of features, and a sentence on the linear SVMs."""
    counts = {name: images for image_set in sets.values() for name, images in image_set.others.items()}
    if not counts:
        return
    persons = f" and the boxes of {ACTION_PERSONS:,} persons, as if they were images"
    parts = [
        f"{name} {images:,}{persons if name == 'voc2012_action' else ''}"
        for name, images in counts.items()
        if images is not None
    ]
    parts = [", ".join(parts)] if parts else []
    if None in counts.values():
        unknown = ", ".join(name for name, images in counts.items() if images is None)
        parts.append(f"not counted, and so not included: {unknown}")
    nets = ", ".join(name for name, image_set in sets.items() if image_set.others)
    yield f"features of {nets} are computed for other data sets' images, 4 bytes per unit: {'; '.join(parts)}"
    svms = (
        "linear SVMs on features are trained on one node's CPU while its GPUs wait, and are not included in the hours"
    )
    if "caltech256" in counts:
        from vggrepro.evaluation.svm import C_GRID

        svms += (
            f": those of caltech256 take tens of CPU hours per split with all {facts().transfer['caltech256'].classes} "
            f"classes and {len(C_GRID)} values of C (measured: about 25 s per class and C at a quarter of its training "
            f"rows), divided by the cores"
        )
    yield svms


def _loading(machine: Machine, stages: Sequence[StagePlan]) -> str:
    """Describes the decoding and reading rates."""
    if machine.decode_per_core == DECODE_PER_CORE:
        rate = (
            f"a core decodes {DECODE_PER_CORE:g} images/s with DALI, by measurements with photographs of 29 kB on a "
            f"Xeon (2026-11-22); larger ones take longer: measure with `vggrepro bench loader`, give --decode-rate"
        )
    else:
        rate = f"a core decodes {machine.decode_per_core:g} images/s, as given"
    cores = {stage.cores_node for stage in stages}
    known = " or ".join(f"{n} cores per node decode" for n in sorted(cores - {None}))  # type: ignore[type-var]
    have = known or "the number of cores per node is unknown (cluster.cpus_per_task)"
    read = "" if machine.read_mb_per_s is None else f"; the file system gives {machine.read_mb_per_s:g} MB/s, as given"
    return f"{rate}; {have}{read}"
