"""The `vggrepro` command: thin, one function a verb. Whatever is heavy is imported inside them."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggrepro.errors import UserError, run_command

if TYPE_CHECKING:
    from vggrepro.evaluation.measure import Scored

app = typer.Typer(
    name="vggrepro",
    help="Very Deep Convolutional Networks for Large-Scale Image Recognition (arXiv 1409.1556), reproduced.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

weights_app = typer.Typer(no_args_is_help=True, help="Weight files of other programs: import, export.")
app.add_typer(weights_app, name="weights")
bench_app = typer.Typer(no_args_is_help=True, help="Ours beside the usual way, interleaved in one run.")
app.add_typer(bench_app, name="bench")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML file, or a name in configs/: a stage or a graph.")
]
SetOption = Annotated[list[str], typer.Option("--set", "-s", help="Override a setting, as section.key=value.")]
RunsOption = Annotated[
    list[Path], typer.Option("--runs", "-r", help="Folder of all runs, of an experiment, or of one run; repeatable.")
]
SeedsOption = Annotated[
    str | None, typer.Option("--seeds", help="The whole graph once for each of these seeds, e.g. 0,1,2.")
]
StopAfterOption = Annotated[
    float | None, typer.Option(min=0, help="Minutes after which to save and leave with status 75.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


class Resume(StrEnum):
    """What to do with the checkpoints of an earlier start."""

    auto = "auto"
    never = "never"


class Verify(StrEnum):
    """How closely the index looks at an image."""

    full = "full"
    header = "header"


class Method(StrEnum):
    """How the net is applied to an image (Section 3.2)."""

    centre = "centre"
    dense = "dense"
    multicrop = "multicrop"
    both = "both"


class Backend(StrEnum):
    """What carries gradients between ranks."""

    nccl = "nccl"
    gloo = "gloo"


class Input(StrEnum):
    """What a net's pixels were."""

    paper = "paper"
    torchvision = "torchvision"


@app.command()
def summary(
    net: Annotated[str | None, typer.Argument(help="A, A-LRN, B, C, D or E; all of them when left out.")] = None,
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="With batch normalisation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Table 1 and 2: layers, output shapes, parameters, multiply-adds."""
    from vggrepro.models.summary import render, summarise
    from vggrepro.models.table1 import architecture
    from vggrepro.paper import facts

    nets = [architecture(name, batch_norm=batch_norm) for name in ([net] if net else facts().architectures)]
    if as_json:
        _print_json({"nets": summarise(nets)})
    else:
        from rich.console import Console

        Console().print(render(nets))


@app.command()
def index(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Where the images are: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the development kit "
            "(or meta.bin, LOC_val_solution.csv, a list of labels), a folder that holds these, a folder with train/ "
            "and val/, Kaggle's tree, WebDataset shards. Validation images alone are enough for testing. Nothing is "
            "extracted."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index file to write.")],
    verify: Annotated[Verify, typer.Option(help="Decode every image once, or read its header only.")] = Verify.full,
    classes: Annotated[
        str | None,
        typer.Option(
            help="All classes, where the images are of some of them only: a file with a name or wnid on a line, the "
            "development kit, or ilsvrc2012 for its 1000."
        ),
    ] = None,
    mean: Annotated[bool, typer.Option("--mean", help="Compute the mean colour of the training images.")] = False,
    md5: Annotated[bool, typer.Option("--md5", help="Hold ILSVRC's archives against their published MD5.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Name every image that is odd or rejected.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find and check images where they lie: counts, labels, sizes, odd and unreadable files."""
    from vggrepro.data.census import render
    from vggrepro.data.index import scan
    from vggrepro.data.sources import check_md5
    from vggrepro.progress import progress

    if mean and verify is Verify.header:
        raise UserError("--mean needs the pixels, but --verify header decodes nothing; use --verify full")
    if out.is_dir() or not out.name:
        raise UserError(f"--out {out} is a folder; name the file to write in it, e.g. {out / 'images.idx'}")
    if md5:
        with progress("MD5", None) as update:
            check_md5(sources, lambda done, total: update(done, f"of {total} MiB"))
    with progress("looking at images", None) as update:
        made = scan(
            sources,
            verify.value,
            classes=classes,
            mean=mean,
            journal=out.with_name(f".{out.name}.partial"),
            found=lambda images: update(0, f"of {images} found so far"),
            progress=lambda done, total: update(done, f"of {total}"),
        )
    made.save(out)
    if as_json:
        _print_json(made.summary())
    else:
        for line in render(made, names=report):
            typer.echo(line)
        typer.echo(f"wrote {out}")


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file of one stage, or its name in configs/.")],
    changes: SetOption = [],  # noqa: B006 (typer wants a list)
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint; never: refuse one.")] = (
        Resume.auto
    ),
    stop_after: StopAfterOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train although activations vanish or explode at initialisation.")
    ] = False,
) -> None:
    """Train one stage, alone or under torchrun.

    On SIGTERM and SIGUSR2, too, it saves and leaves with status 75; the same command goes on from there.
    """
    from vggrepro.config import load_stage
    from vggrepro.pipeline import session, train_stage

    stage, parent = load_stage(config, changes)
    if resume is Resume.never and any((stage.directory / "checkpoints").glob("*.pt")):
        raise UserError(
            f"--resume never, but {stage.directory} has checkpoints; use --resume auto, another run.name, "
            f"or remove the directory"
        )
    with session([stage], stop_after_s=_seconds(stop_after)) as at:
        train_stage(stage, parent, at, force=force)


@app.command()
def evaluate(
    nets: Annotated[list[Path], typer.Argument(help="Run directories or checkpoints; several are fused.")],
    method: Annotated[
        Method, typer.Option(help="How a net is applied (Section 3.2); both is the mean of dense and multicrop.")
    ] = Method.dense,
    scales: Annotated[
        str | None,
        typer.Option(
            help="Q values in px, e.g. 256,384,512; default: each run's own, one of Table 3, or for multicrop and "
            "both several of Table 5."
        ),
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Top-1 and top-5 error on the validation split, averaged over scales and over nets.

    Posteriors are kept in the run directories; what is there is not computed again.
    """
    from vggrepro.evaluation.measure import fuse
    from vggrepro.evaluation.significance import paired
    from vggrepro.pipeline import evaluate_nets

    evaluated = evaluate_nets(nets, [method.value], _whole_numbers(scales) if scales else None, changes)
    if evaluated is None:  # not the first rank
        return
    scored = {str(one.path): one.scored(method.value) for one in evaluated}
    fused = fuse(list(scored.values()))
    flip = all(one.config.evaluation.flip for one in evaluated) and method is not Method.centre
    report: dict[str, Any] = _report(fused, flip)
    if len(scored) > 1:
        report["nets"] = [{"net": name} | _report(one, flip) for name, one in scored.items()]
        for entry, one in zip(report["nets"], scored.values(), strict=True):
            test = paired(one.values, fused.values, fused.labels, 1)
            entry |= {"top1_minus_fused": test.difference, "interval": list(test.interval), "p_value": test.p_value}
    if as_json:
        _print_json(report)
        return
    for entry in report.get("nets", []):
        low, high = entry["interval"]
        typer.echo(
            f"{entry['net']}: {_line(entry)}\n  top-1 minus the fused nets': {entry['top1_minus_fused']:+.2f} points "
            f"(95 % interval {low:+.2f} to {high:+.2f}; McNemar's exact p = {entry['p_value']:.3g})"
        )
    typer.echo((f"{len(scored)} nets fused: " if len(scored) > 1 else "") + _line(report))


def _report(one: Scored, flip: bool) -> dict[str, Any]:
    result = one.measured
    return {
        "top1_error": result.top1.percent,
        "top5_error": result.top5.percent,
        "interval_top1": list(result.top1.interval),
        "interval_top5": list(result.top5.interval),
        "n": result.top1.n,
        "method": result.method,
        "scales": list(result.Q),
        "flip": flip,
    }


def _line(report: dict[str, Any]) -> str:
    low, high = report["interval_top1"]
    return (
        f"{report['method']}{'' if report['flip'] or report['method'] == 'centre' else ' without mirror images'} at "
        f"Q = {', '.join(map(str, report['scales']))}, n = {report['n']}: top-1 error "
        f"{report['top1_error']:.2f} % (95 % interval {low:.2f} - {high:.2f}), top-5 {report['top5_error']:.2f} %"
    )


@app.command(name="verify-paper")
def verify_paper(
    index: Annotated[Path, typer.Option("--index", "-i", help="Index of ILSVRC-2012 with its validation images.")],
    weights_16: Annotated[Path | None, typer.Option(help="VGG_ILSVRC_16_layers.caffemodel (net D).")] = None,
    weights_19: Annotated[Path | None, typer.Option(help="VGG_ILSVRC_19_layers.caffemodel (net E).")] = None,
    runs: Annotated[Path, typer.Option(help="Where posteriors are kept.")] = Path("runs/verify-paper"),
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """The authors' own nets against the rows of Tables 3-6 that they determine, before anything is trained."""
    from vggrepro import pipeline
    from vggrepro.evaluation.verify import to_markdown

    files = {net: file for net, file in (("D", weights_16), ("E", weights_19)) if file}
    if not files:
        raise UserError("verify-paper needs --weights-16 or --weights-19: the authors' Caffe files")
    found = pipeline.verify_paper(files, index, runs, changes)
    if found is None:  # not the first rank
        return
    if as_json:
        _print_json(found)
    else:
        typer.echo(to_markdown(found))


@weights_app.command(name="import")
def import_weights(
    file: Annotated[Path, typer.Argument(help="A .caffemodel, MatConvNet's .mat, a .pth of torch, or .safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run directory to make.")],
    net: Annotated[str | None, typer.Option(help="The column of Table 1 that it must be of.")] = None,
    input_as: Annotated[
        Input | None,
        typer.Option("--input", help="What its input was: paper (grey levels minus mean) or torchvision's."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a run directory of another program's weights, for `vggrepro evaluate`."""
    from vggrepro import pipeline

    found = pipeline.import_weights(file, out, net=net, preprocessing=input_as.value if input_as else None)
    if as_json:
        _print_json(found)
        return
    for key, item in found.items():
        typer.echo(f"{key:14} {item}")


@weights_app.command(name="export")
def export_weights(
    net: Annotated[Path, typer.Argument(help="A run directory, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .safetensors, .pth or .onnx file to write.")],
    dense: Annotated[
        bool, typer.Option("--dense", help="ONNX: the net for whole images of any size (Section 3.2).")
    ] = False,
) -> None:
    """Write a net for other programs: .safetensors and .onnx carry its preprocessing, .pth has torchvision's keys.

    Beside .safetensors a model card, NAME.md: errors, departures from the paper, data, how to load it.
    """
    from vggrepro import pipeline

    for written in pipeline.export_weights(net, out, dense=dense):
        typer.echo(f"wrote {written}")


@app.command()
def reproduce(
    config: ConfigOption,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    stop_after: StopAfterOption = None,
) -> None:
    """The whole stage graph on this machine: train what is missing, evaluate, print the tables.

    With --seeds once for each seed, whole graphs one after another in one experiment; the tables then give mean and
    spread. On SIGTERM and SIGUSR2, too, it saves and leaves with status 75; the same command goes on from there.
    """
    from vggrepro import pipeline
    from vggrepro.config import load_graph

    pipeline.reproduce(load_graph(config, changes, seeds), stop_after_s=_seconds(stop_after))


@app.command()
def tables(
    runs: RunsOption = [Path("runs")],  # noqa: B006
    experiment: Annotated[list[str], typer.Option("--experiment", "-e", help="Only runs of this experiment.")] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here: .md, .html, .tex, .csv or .json.")
    ] = None,
    update: Annotated[
        Path | None, typer.Option(help="Renew the generated sections of this document, e.g. REPRODUCTION.md.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tables 1-7 of the paper, measured beside printed, and its claims tested, from what runs have stored."""
    from vggrepro.reporting.render import Format, format_of, render
    from vggrepro.reporting.runs import find_runs
    from vggrepro.reporting.tables import build_report

    form = format_of(out) if out else Format.json if as_json else Format.markdown
    report = build_report(find_runs([place for place in runs if place.exists() or place != Path("runs")], experiment))
    text = render(report, form, "Very Deep Convolutional Networks (arXiv 1409.1556): measured beside printed")
    if out:
        _write(out, text)
    if update:
        from vggrepro.reporting.document import update_document

        update_document(update, report)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    elif not out and not update:
        typer.echo(text, nl=False)


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Run directories, stages, experiment:stage, or MLflow run ids; two or more.")
    ],
    places: RunsOption = [Path("runs")],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here, .html with curves and images, or .md.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What differs between runs: settings, curves, errors with paired tests, classes, the images they disagree on."""
    from vggrepro.progress import say
    from vggrepro.reporting.blocks import to_html, to_markdown
    from vggrepro.reporting.compare import blocks_of, open_images
    from vggrepro.reporting.compare import compare as compare_runs
    from vggrepro.reporting.runs import resolve

    if out and out.suffix not in (".html", ".md"):
        raise UserError(f"--out {out}: unknown ending {out.suffix!r}; use .html or .md")
    chosen = resolve(runs, places)
    index, why_not = open_images(chosen)
    made = compare_runs(chosen, index, [why_not] if why_not else [])
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
    if out:
        blocks = blocks_of(made, chosen, index)
        _write(out, to_html(" against ".join(made.runs), blocks) if out.suffix == ".html" else to_markdown(blocks))
        say(f"written to {out}")
    elif not as_json:
        typer.echo(to_markdown(blocks_of(made, chosen, None)), nl=False)
        say("with curves and images: --out compare.html")


@app.command()
def plan(
    config: ConfigOption,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines for each stage; default: cluster.nodes.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="Default: cluster.gpus_per_node.")] = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU: H100, H100 PCIe, H200, A100, V100.")] = "H100",
    measured: Annotated[
        list[str], typer.Option(help="NET=IMAGES_PER_S of one GPU in training, measured; repeatable.")
    ] = [],  # noqa: B006
    mfu: Annotated[float | None, typer.Option(help="Share of the GPU's peak that a step reaches; assumed.")] = None,
    network: Annotated[
        float | None, typer.Option(min=0.001, help="Between nodes, GB/s each way and node; assumed.")
    ] = None,
    decode_rate: Annotated[
        float | None,
        typer.Option(help="Training images/s that one core decodes, by `vggrepro bench loader`; default: ours."),
    ] = None,
    read: Annotated[
        float | None, typer.Option(help="What the file system gives all nodes together, MB/s; default: no limit.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of one GPU-hour.")] = None,
    changes: SetOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a configuration will cost: GPU-hours, wall time, traffic, disk, money, with the assumptions.

    And what binds each stage, and the one or two settings that would save most.
    """
    from vggrepro.config import load_graph
    from vggrepro.plan import ASSUMED_MFU, DECODE_PER_CORE, NODE_GB_PER_S, Machine, measured_rates, render
    from vggrepro.plan import plan as make_plan

    graph = load_graph(config, changes, seeds)
    cluster = next(iter(graph.stages.values())).cluster
    machine = Machine(
        nodes=nodes or cluster.nodes,
        gpus_per_node=gpus_per_node or cluster.gpus_per_node,
        gpu=gpu,
        mfu=ASSUMED_MFU if mfu is None else mfu,
        measured=measured_rates(measured),
        node_gb_per_s=NODE_GB_PER_S if network is None else network,
        price=price,
        decode_per_core=DECODE_PER_CORE if decode_rate is None else decode_rate,
        read_mb_per_s=read,
    )
    made = make_plan(graph, machine)
    if as_json:
        _print_json(made.to_json())
    else:
        typer.echo(render(made, machine))


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Also check what this one needs.")] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """What on this machine or cluster will not work, and the remedy. Status 1 where something fails."""
    from dataclasses import asdict

    from vggrepro.config import load_graph
    from vggrepro.doctor import examine, render

    graph = load_graph(config, changes) if config else None
    root = next(iter(graph.stages.values())).run.root if graph else Path("runs")
    checks = examine(graph, root)
    if as_json:
        _print_json({"checks": [asdict(check) for check in checks]})
    else:
        typer.echo(render(checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; choose another place") from None


@bench_app.command(name="dense")
def bench_dense(
    net: Annotated[str, typer.Option(help="A column of Table 1.")] = "D",
    scales: Annotated[str | None, typer.Option(help="Q values in px; default: three, as in Section 4.2.")] = None,
    images: Annotated[
        int, typer.Option("--images", "--pictures", min=1, help="Validation images of the data set to use.")
    ] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each way is timed, in turn.")] = 5,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Dense evaluation: images/s beside one image at a time, and beside torchvision's centre crop.

    Without --set the geometry is small enough for a CPU, crop 64 and an eighth of the width, and the images are the
    built-in ones.
    """
    from vggrepro.bench.dense import run
    from vggrepro.config import Config, Data, Model, override

    small = Config(
        model=Model(net=net, classes=10, crop=64, width=0.125), data=Data(root="builtin:digits", S=(73, 146))
    )
    config = override(small, changes, Path("bench dense"))
    _print_bench(run(config, _whole_numbers(scales) if scales else config.multi_Q, images, rounds), as_json)


@bench_app.command(name="loader")
def bench_loader(
    source: Annotated[str, typer.Argument(help="Folder or archives with images, or builtin:digits.")],
    S: Annotated[str, typer.Option("--S", help="Shorter sides in px, lowest and highest.")] = "256,512",
    crop: Annotated[int, typer.Option(min=1, help="Side of the training crop, px.")] = 224,
    images: Annotated[int, typer.Option("--images", "--pictures", min=1, help="Training images to use.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 64,
    batches: Annotated[int, typer.Option(min=1, help="Batches that are timed in a turn.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 5,
    threads: Annotated[
        str, typer.Option(help="Also with these numbers of decoding threads, e.g. 1,2, in one process and in several.")
    ] = "",
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Training images: images per second and core, beside torchvision's ImageFolder in a DataLoader."""
    from vggrepro.bench.loader import run
    from vggrepro.config import Config, Data, Model, override

    low, high = (_whole_numbers(S, "--S") * 2)[:2]
    scale = low if low == high else (low, high)
    plain = Config(model=Model(net="D", crop=crop), data=Data(root=source, S=scale))
    config = override(plain, changes, Path("bench loader"))
    numbers = _whole_numbers(threads, "--threads") if threads else ()
    _print_bench(run(config, images, batch, batches, rounds, numbers), as_json)


@bench_app.command(name="step")
def bench_step(
    nets: Annotated[str, typer.Option(help="Columns of Table 1, separated by commas.")] = "A,D,E",
    batches: Annotated[str | None, typer.Option(help="Batch sizes; default: 32,64,128,256, on a CPU 8,32.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed in a turn.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 7,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """The training step: images/s beside torchvision's reference recipe, and beside a bare step.

    Without --set it is the paper's geometry in bf16 and compiled on a GPU, and a small one in fp32 on a CPU.
    """
    import torch

    from vggrepro.bench.step import plain, run
    from vggrepro.config import override

    config = override(plain(), changes, Path("bench step"))
    usual = (32, 64, 128, 256) if torch.cuda.is_available() else (8, 32)
    sizes = _whole_numbers(batches, "--batches") if batches else usual
    _print_bench(run(config, tuple(nets.split(",")), sizes, steps, rounds), as_json)


@bench_app.command(name="profile")
def bench_profile(
    net: Annotated[str, typer.Option(help="A column of Table 1.")] = "D",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each measurement.")] = 10,
    top: Annotated[int, typer.Option(min=1, help="Kernels to name, the longest first.")] = 10,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Where a training step spends its time: kernels, gaps between them, launches, the host's share.

    Without --set as `bench step`, at the paper's batch on a GPU.
    """
    from vggrepro.bench.profile import run
    from vggrepro.bench.step import plain
    from vggrepro.config import override

    _print_bench(run(override(plain(net), changes, Path("bench profile")), steps, top), as_json)


@bench_app.command(name="comm")
def bench_comm(
    net: Annotated[str, typer.Option(help="A column of Table 1.")] = "D",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed in a turn.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each exchange.")] = 5,
    backend: Annotated[
        Backend | None, typer.Option(help="Default: nccl on GPUs. gloo takes several ranks on one GPU.")
    ] = None,
    changes: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Exchange of gradients: bytes and steps/s of factor exchange beside DDP; start it with torchrun."""
    import torch

    from vggrepro.bench.comm import run
    from vggrepro.bench.step import small
    from vggrepro.config import Config, Model, override

    plain = Config(model=Model(net=net)) if torch.cuda.is_available() else small(net)
    found = run(override(plain, changes, Path("bench comm")), steps, rounds, backend.value if backend else None)
    if found is not None:  # the first rank
        _print_bench(found, as_json)


def _seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


def _whole_numbers(text: str, option: str = "--scales") -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} {text}: expected whole numbers separated by commas, e.g. 256,384,512")
    return numbers


def _print_bench(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    if "ours" in found:  # a profile has no other way beside it
        typer.echo(f"{found['name']}: ours {found['ours']:.4g}, usual {found['usual']:.4g} {found['unit']}, ", nl=False)
        typer.echo(f"ratio {found['ratio']:.3g}" + (f", ceiling {found['ceiling']:.4g}" if found["ceiling"] else ""))
    for key, item in found["details"].items():
        typer.echo(f"  {key:40} {item}")


def _print_json(report: dict[str, Any]) -> None:
    typer.echo(json.dumps(report, indent=2))


def main() -> None:
    """The console script."""
    run_command("vggrepro", app)
