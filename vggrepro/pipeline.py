"""The stage graph on this machine: which run needs which, what is there already, what is still to be done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggrepro.config import Config, Data, Evaluation, Graph, Model, flatten, override
from vggrepro.distributed import (
    Topology,
    first_rank_first,
    from_first_rank,
    pick_device,
    process_group,
    share_of_cores,
    topology,
)
from vggrepro.errors import Interrupted, UserError
from vggrepro.evaluation.measure import Scored, measure, methods_of, missing_Q, scored
from vggrepro.ledger import Departure, ledger, read_ledger
from vggrepro.paper import value
from vggrepro.progress import progress, say
from vggrepro.reporting.answers import AnswerBook
from vggrepro.reporting.card import model_card, place_of
from vggrepro.reporting.render import Format, render
from vggrepro.reporting.runs import StoredRun, find_runs
from vggrepro.reporting.tables import build_report
from vggrepro.stages import is_finished, relocated, require_finished
from vggrepro.tracking import MlflowMirror, RunDirectory, environment, resolve_uri, ui_command
from vggrepro.watch import Watch

if TYPE_CHECKING:
    import torch

    from vggrepro.checkpoint import Checkpoint
    from vggrepro.data.index import Index
    from vggrepro.data.loader import Loader
    from vggrepro.models.weights import Imported, Preprocessing

_MLFLOW_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Session:
    """What all stages of one command share: this rank's place, device and watch, and the data sets opened so far."""

    here: Topology
    device: torch.device
    watch: Watch
    indexes: dict[Data, Index]
    cores: int
    """This rank's share of its machine's."""
    training: bool = True
    """Whether nets are trained: else validation images are enough."""

    def loader(self, config: Config) -> Loader:
        """What renders the images of a stage. Raises UserError."""
        from vggrepro.data.loader import make_loader

        return make_loader(config.data, self.device, self.cores)

    def index(self, config: Config) -> Index:
        """The data set of a stage; rank 0 makes what others then find made. Raises UserError."""
        from vggrepro.data.loader import open_data

        if config.data not in self.indexes:
            with (
                first_rank_first(self.here),
                progress("reading image headers", None, shown=self.here.is_first) as update,
            ):
                self.indexes[config.data] = open_data(
                    config, lambda done, total: update(done, f"of {total}"), training=self.training
                )
        return self.indexes[config.data]


@contextmanager
def session(configs: list[Config], *, training: bool = True, stop_after_s: float | None = None) -> Iterator[Session]:
    """Checks what can be checked before anything is spent, then joins the ranks. Raises UserError.

    Without `training`, any number of ranks will do. After `stop_after_s` seconds of wall time the work is asked to
    stop, as by a signal; where it can be left, Interrupted is then raised.
    """
    from vggrepro.data.loader import make_loader
    from vggrepro.models.table1 import architecture_of
    from vggrepro.training.step import share_of

    here = topology(os.environ)
    for config in configs:
        architecture_of(config)
        if training:
            share_of(here, config.train.batch, config.train.micro_batch)
        is_finished(config)
        resolve_uri(config.tracking.uri, config.run.root)
    device = pick_device(configs[0].run.device, here.local_rank)
    silence_s = configs[0].train.rank_timeout_s
    watch = Watch(here, silence_s=silence_s, stop_after_s=stop_after_s)
    for config in configs:
        make_loader(config.data, device)
    # The watch names a silent rank; a collective's own time-out, which names none, comes later.
    with process_group(here, device, timeout_s=max(300.0, 2 * silence_s)), watch:
        yield Session(here, device, watch, {}, share_of_cores(), training)


def train_stage(config: Config, parent: Config | None, at: Session, *, force: bool = False) -> None:
    """Trains one stage unless it is finished; `force` also where its activations vanish or explode at the start.

    Raises UserError, also when the parent is not finished, and Interrupted.
    """
    from vggrepro.training import stage
    from vggrepro.training.loop import train

    run = RunDirectory(config.directory)
    if from_first_rank(is_finished(config)):
        if at.here.is_first:
            say(f"{config.name}: already trained ({config.directory})")
        return
    if parent:
        require_finished(parent)
    index = at.index(config)
    stage.check_data(config, index)
    if at.here.is_first:
        departures = stage.begin(config, parent, index, run, at.here.world)
        say(f"{config.name}: departs from the paper in {len(departures)} settings, see {run.path / 'ledger.json'}")
    with _mirrored(config, run, at.here):
        train(config, parent, index, at.loader(config), at.here, run, at.watch, force=force)
        with at.watch.waiting():
            from_first_rank(None)  # rank 0 has written final.pt, which every rank now reads


def evaluate_stage(config: Config, at: Session) -> None:
    """Stores the posteriors of a finished stage at every Q its tables need, and logs the errors. Raises UserError."""
    from vggrepro.evaluation.stage import evaluate
    from vggrepro.training.stage import check_data, load_final, net_of

    run = RunDirectory(config.directory)
    weights = weights_of(config)
    index = at.index(config)
    check_data(config, index)
    if not from_first_rank(_lacks_posteriors(config, weights, index.fingerprint, run)):
        return
    with _mirrored(config, run, at.here):
        evaluate(
            config,
            weights,
            lambda: net_of(load_final(config), at.device),
            index,
            at.loader(config),
            at.here,
            run,
            at.watch,
            _tests(config),
        )
        if at.here.is_first:
            asked = [("dense", config.single_Q), ("dense", config.multi_Q), ("centre", config.single_Q)]
            if record := _errors(config, weights, index.fingerprint, run, asked):
                run.append(record)
            _draw(config, run, index, at)


def _tests(config: Config) -> dict[str, set[int]]:
    """The Q at which each method tests a finished stage: what Tables 3 and 4 need, and a centre crop beside them."""
    return {"dense": {*config.single_Q, *config.multi_Q}, "centre": {*config.single_Q}}


def _lacks_posteriors(config: Config, weights: str, data: str, run: RunDirectory) -> bool:
    """Whether posteriors that the tests of a stage make are not stored."""
    return any(missing_Q(config, weights, data, run, Q, method) for method, Q in _tests(config).items())


def _errors(
    config: Config, weights: str, data: str, run: RunDirectory, asked: Iterable[tuple[str, tuple[int, ...]]]
) -> dict[str, Any] | None:
    """The errors by (method, Q) as a record of `metrics.jsonl`; None where it has them all.

    Named by the protocol: `dense_single_Q_top1_error` at the run's own Q of Table 3, `both_multi_Q_top1_error` at those
    of Tables 4 and 5, `centre_Q_256_384_top1_error` at others.
    """
    names = {config.multi_Q: "multi_Q", config.single_Q: "single_Q"}
    record: dict[str, Any] = {"kind": "evaluation", "step": config.train.iterations}
    for method, Q in asked:
        found = measure(config, weights, data, run, Q, method)
        assert found is not None, (method, Q)
        name = f"{method}_{names.get(Q) or 'Q_' + '_'.join(map(str, Q))}"
        record |= {f"{name}_top1_error": found.top1.percent, f"{name}_top5_error": found.top5.percent}
        record["n"] = found.top1.n
    known: dict[str, Any] = {}
    for one in run.records("evaluation"):
        known |= one
    return None if record.items() <= known.items() else record


def is_evaluated(config: Config) -> bool:
    """Whether a stage is finished and the posteriors that its tables need are stored. Raises as is_finished."""
    run = RunDirectory(config.directory)
    weights, data = run.read_json("final.json"), run.read_json("dataset.json")
    if not (is_finished(config) and weights and data):
        return False
    return not _lacks_posteriors(config, weights["weights"], data["fingerprint"], run)


def reproduce(graph: Graph, *, stop_after_s: float | None = None) -> Path | None:
    """Trains what is missing, parents first, evaluates, prints and writes the tables; every rank calls it.

    Returns the tables' file on rank 0. Raises UserError, and Interrupted where it was asked to stop or `stop_after_s`
    seconds have passed; the same call then goes on.
    """
    stages = list(graph.stages.values())
    with session(stages, stop_after_s=stop_after_s) as at:
        for name, config in graph.stages.items():
            parent = graph.parents[name]
            train_stage(config, graph.stages[parent] if parent else None, at)
            evaluate_stage(config, at)
        if not at.here.is_first:
            return None
    return write_tables(graph)


def write_tables(graph: Graph) -> Path:
    """Prints and writes the tables of what is evaluated by now; returns their file. Raises UserError."""
    stages = list(graph.stages.values())
    folder = RunDirectory(stages[0].run.root / graph.name)
    title = f"{graph.name}: measured beside printed"
    seen, text = None, ""
    # Stages that run as jobs of their own end when they will: the tables are written last by who has seen all of it.
    while seen != (found := sorted(file for stage in stages for file in stage.directory.glob("posteriors/*"))):
        seen = found
        report = build_report([StoredRun(config.directory, config) for config in stages])
        text = render(report, Format.markdown, title, counts=False)
        folder.write_text("tables.md", text)
        folder.write_text("tables.html", render(report, Format.html, title, counts=False))
    print(text)
    say(f"tables written to {folder.path / 'tables.md'} and tables.html")
    if stages[0].tracking.mlflow:
        say(f"runs side by side in MLflow: {ui_command(resolve_uri(stages[0].tracking.uri, stages[0].run.root))}")
    return folder.path / "tables.md"


def _draw(config: Config, run: RunDirectory, index: Index, at: Session) -> None:
    """The figures of one finished run, and those of its experiment by then, in its folder `figures`."""
    from vggrepro.data.plan import TrainingPlan
    from vggrepro.reporting import figures
    from vggrepro.training.stage import load_final

    drawn = {"learning_curves": figures.learning_curves({config.name: run})}
    split, shown = index.split("train"), 24
    plan = TrainingPlan(split.size, config.data, config.model.crop, config.run.seed)
    crops = next(iter(replace(at.loader(config), processes=0).batches(split, [plan.views(0, shown)])))
    images = crops.images.permute(0, 2, 3, 1).float().cpu().numpy()
    titles = [index.classes[label] for label in crops.labels.tolist()]
    drawn["training_crops"] = figures.crops_sheet(images, config.data.mean, titles)
    answers = AnswerBook().of([(StoredRun(run.path, config), config.multi_Q)], "dense")
    assert answers is not None
    protocol = f"dense, Q = {', '.join(map(str, config.multi_Q))}; n = {answers.top1.n:,}"
    drawn["confusion"] = figures.confusion(answers, index.classes, protocol)
    drawn["conv1_1"] = figures.filters(load_final(config).weights["features.0.weight"].float().numpy())
    try:
        report = build_report(find_runs([run.path.parent]))
    except UserError as error:  # of another run: this one is none the worse for it
        say(f"{config.name}: no figures of its experiment: {error}")
    else:
        (group,) = (one.id for one in report.groups if any(note.directory == str(run.path) for note in one.runs))
        for name, draw in (("error_by_depth", figures.error_by_depth), ("error_by_scale", figures.error_by_scale)):
            if png := draw(report, group):
                drawn[name] = png
    for name, png in drawn.items():
        run.write_bytes(f"figures/{name}.png", png)


def weights_of(config: Config) -> str:
    """The hash of a finished stage's net, computed once. Raises UserError when the stage is not finished."""
    run = RunDirectory(config.directory)
    kept = run.read_json("final.json")
    if kept is None:
        from vggrepro.checkpoint import weights_hash
        from vggrepro.training.stage import load_final

        final = load_final(config)
        kept = {"weights": weights_hash(final.weights), "step": final.step}
        run.write_json("final.json", kept)
    return kept["weights"]


@contextmanager
def _mirrored(config: Config, run: RunDirectory, here: Topology) -> Iterator[None]:
    """Mirrors the run in MLflow for as long as the block takes; on rank 0, unless tracking is off."""
    if not (here.is_first and config.tracking.mlflow):
        yield
        return
    root = config.run.root
    params = flatten(config.model_dump(mode="json"))
    params |= {"evaluation.single_Q": list(config.single_Q), "evaluation.multi_Q": list(config.multi_Q)}
    mirror = MlflowMirror(
        run,
        uri=resolve_uri(config.tracking.uri, root),
        experiment=config.run.experiment,
        run_name=config.name,
        params={key: str(setting) for key, setting in params.items()},
        tags={"stage": config.name, "net": config.model.net} | _provenance(run),
        artifact_root=root / "mlartifacts",
        dataset=run.read_json("dataset.json"),
    )
    mirror.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    finally:
        names = ("config.yaml", "dataset.json", "environment.json", "ledger.json", "figures")
        mirror.log_artifacts(run.path / name for name in names if (run.path / name).exists())
        # asked to stop, there may be half a minute left for all that follows; the next start copies what is missing
        mirror.close(status, 5.0 if status == "KILLED" else _MLFLOW_PATIENCE_S)  # type: ignore[arg-type]


def _provenance(run: RunDirectory) -> dict[str, str]:
    """What MLflow shows of a run's making: the command, the code's commit, and the departures from the paper."""
    departures = read_ledger(run) or []
    made = run.read_json("environment.json") or {}
    tags = {
        "departures": str(len(departures)),
        "mlflow.note.content": "\n".join(
            ["Departures from the paper:" if departures else "No departure from the paper.", ""]
            + [f"- {departure}" for departure in departures]
        ),
        "mlflow.source.name": made.get("command"),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": made.get("git_commit"),
    }
    return {key: text for key, text in tags.items() if text}


@dataclass(frozen=True)
class EvaluatedNet:
    """A net whose posteriors are in the store."""

    path: Path
    """Its run directory, or the checkpoint."""
    config: Config
    weights: str
    """Hash of the net."""
    data: str
    """Fingerprint of the index."""
    folder: Path
    """Of the posteriors."""
    Q: tuple[int, ...]
    """At which it was tested, px."""

    def scored(self, method: str, Q: tuple[int, ...] | None = None) -> Scored:
        """The posteriors averaged over Q, by default all at which it was tested. Raises UserError."""
        found = scored(self.config, self.weights, self.data, self.folder, Q or self.Q, method)
        assert found is not None, (self, method, Q)
        return found


def evaluate_nets(
    nets: list[Path], methods: Sequence[str], scales: tuple[int, ...] | None, overrides: Sequence[str] = ()
) -> list[EvaluatedNet] | None:
    """Evaluates nets, each a run directory or a checkpoint, by several methods; None on all ranks but the first.

    Each is tested at every Q of `scales`, or where that is None at its own configuration's: that of Table 3, and for
    multi-crop testing those of Table 5. What is not stored yet is computed with the preprocessing that the net's
    weights were made for, and kept in its run directory; the errors of a run's final net are logged with its other
    metrics. Raises UserError and Interrupted.
    """
    from vggrepro import checkpoint

    files = [_final_of(net) if net.is_dir() else net for net in nets]
    folders = [RunDirectory(net if net.is_dir() else net.parent.parent) for net in nets]
    kept = [checkpoint.load(file) for file in files]
    return _evaluate(list(zip(nets, kept, folders, strict=True)), methods, scales, overrides)


def _final_of(run: Path) -> Path:
    """The final net of a run directory. Raises UserError where there is none, naming what the folder is instead."""
    from vggrepro import checkpoint

    final = checkpoint.final_file(run / "checkpoints")
    if final.exists():
        return final
    if (run / "config.yaml").exists():
        raise UserError(f"{run} is not finished (no {final.name}); train it, or name one of its checkpoints")
    within = sorted(str(one.parent) for one in run.glob("*/config.yaml"))
    what = f"its runs are {', '.join(within[:8])}" if within else "name one, e.g. runs/demo/D"
    raise UserError(f"{run} is no run directory (it has no config.yaml); {what}")


def _evaluate(
    nets: list[tuple[Path, Checkpoint, RunDirectory]],
    methods: Sequence[str],
    scales: tuple[int, ...] | None,
    overrides: Sequence[str],
) -> list[EvaluatedNet] | None:
    from vggrepro.checkpoint import weights_hash
    from vggrepro.evaluation.stage import as_the_net_expects, evaluate
    from vggrepro.training.stage import net_of

    changes = [*overrides, *([f"evaluation.single_Q={list(scales)}"] if scales else [])]
    stages = [relocated(kept.stage, run.path) if path.is_dir() else kept.stage for path, kept, run in nets]
    configs = [override(stage, changes, path) for stage, (path, _, _) in zip(stages, nets, strict=True)]
    result: list[EvaluatedNet] = []
    with session(configs, training=False) as at:
        for (path, kept, run), config in zip(nets, configs, strict=True):
            index = at.index(config)
            _require_classes(kept, index, path)
            weights = weights_hash(kept.weights)
            several = any("multicrop" in methods_of(method) for method in methods)
            Q = scales or (config.multi_Q if several else config.single_Q)
            result.append(EvaluatedNet(path, config, weights, index.fingerprint, run.posteriors, Q))
            if path.is_dir() and at.here.is_first and run.read_json("final.json") is None:
                run.write_json("final.json", {"weights": weights, "step": kept.step})
            if result[-1].data != result[0].data:
                raise UserError(f"{path} and {nets[0][0]} see different images; give them the same data.index")
            loader = as_the_net_expects(at.loader(config), kept.preprocessing)
            make_net = partial(net_of, kept, at.device)
            evaluate(config, weights, make_net, index, loader, at.here, run, at.watch, dict.fromkeys(methods, Q))
            if not at.here.is_first:
                continue
            if run.read_json("dataset.json") is None:  # imported: trained on nothing known
                run.write_json("dataset.json", index.summary() | {"opened_as": _place(config.data)})
            _log_errors(result[-1], methods, run, kept.stage.evaluation, at.here)
    return result if at.here.is_first else None


def _place(data: Data) -> dict[str, str]:
    """Where the images were found, so that they are found again from any working directory."""
    if data.index is not None:
        return {"index": str(data.index.resolve())}
    assert data.root is not None, "the images were opened"
    return {"root": data.root if data.root.startswith("builtin:") else str(Path(data.root).resolve())}


def _log_errors(net: EvaluatedNet, methods: Sequence[str], run: RunDirectory, own: Evaluation, here: Topology) -> None:
    """Adds the errors of a run's final net to its metrics, unless its images or its protocol are not its own."""
    final, data = run.read_json("final.json"), run.read_json("dataset.json")
    if not final or not data or (final["weights"], data["fingerprint"]) != (net.weights, net.data):
        return
    if (net.config.evaluation.flip, net.config.evaluation.precision) != (own.flip, own.precision):
        return
    asked = [(one, net.Q) for method in methods for one in dict.fromkeys((*methods_of(method), method))]
    trained = net.config.model_copy(update={"evaluation": own})
    if record := _errors(trained, net.weights, net.data, run, asked):
        with _mirrored(relocated(trained, run.path), run, here):
            run.append(record)


def _require_classes(net: Checkpoint, index: Index, file: Path) -> None:
    """Raises UserError when the index has other classes, or another order of them, than the net was trained on."""
    known, digest = net.provenance["classes"], net.provenance.get("classes_sha256")
    own = hashlib.sha256("\n".join(index.classes).encode()).hexdigest()
    if (known is not None and list(index.classes) != known) or (digest is not None and digest != own):
        raise UserError(
            f"{index.source} has other classes than {file} was trained on; set data.root to the same ones, or, where "
            f"it has some of them only, index it with --classes and a list of all"
        )


def import_weights(
    file: Path, run: Path, *, net: str | None = None, preprocessing: Preprocessing | None = None
) -> dict[str, Any]:
    """Makes a run directory of a weight file of another program, as if its net had just been trained.

    Returns what was found: net, classes, crop, width, parameters, source, sha256, preprocessing, weights (the net's
    hash), run. Raises UserError, also when the run directory holds a net already.
    """
    from vggrepro import checkpoint
    from vggrepro.models.table1 import architecture
    from vggrepro.models.weights import read

    final = checkpoint.final_file(run / "checkpoints")
    if final.exists():
        raise UserError(f"--out {run} holds a net already ({final}); choose another directory, or remove it")
    found = read(file, net=net, preprocessing=preprocessing)
    kept = _checkpoint_of(found, run)
    weights = checkpoint.weights_hash(found.weights)
    directory = RunDirectory(run)
    directory.write_text("config.yaml", kept.stage.to_yaml())
    directory.write_json("final.json", {"weights": weights, "step": 0})
    why = "imported: how it was trained is not known here"
    departures = [Departure("weights", "trained by this recipe", found.source, why)]
    departures += [one for one in ledger(kept.stage, None) if one.setting.startswith(("model.", "evaluation."))]
    directory.write_json("ledger.json", [asdict(departure) for departure in departures])
    checkpoint.save(kept, final)
    return {
        **{key: found.model[key] for key in ("net", "classes", "crop", "width")},
        "parameters": architecture(**found.model).parameters,
        "source": found.source,
        "sha256": found.sha256,
        "preprocessing": found.preprocessing,
        "weights": weights,
        "run": str(run),
    }


def _checkpoint_of(found: Imported, run: Path) -> Checkpoint:
    """Imported weights as the final checkpoint of a run."""
    from vggrepro.checkpoint import Checkpoint
    from vggrepro.models.weights import ILSVRC_CLASSES_SHA256

    authors = found.source.startswith(("Caffe", "MatConvNet"))
    # the authors' nets were trained with scale jitter, so they are tested at 384 or at 256, 384 and 512
    data = Data(mean=found.preprocessing["mean"], S=value("jitter") if authors else value("scales")[0])
    place = {"root": run.resolve().parent.parent, "experiment": run.resolve().parent.name, "name": run.resolve().name}
    changes = [f"run.{key}={json.dumps(str(text))}" for key, text in place.items()]
    for key, setting in (found.testing or {}).items():
        changes.append(f"{'data' if key == 'S' else 'evaluation'}.{key}={json.dumps(setting)}")
    config = override(Config(model=Model(**found.model), data=data), changes, run)
    ilsvrc = found.classes is None and found.model["classes"] == value("classes")
    provenance = {
        "data": None,
        "classes": found.classes,
        "classes_sha256": ILSVRC_CLASSES_SHA256 if ilsvrc else None,
        "versions": environment(),
        "parent": None,
        "imported": {"source": found.source, "sha256": found.sha256, "testing": found.testing},
    }
    return Checkpoint(config.model_dump(mode="json"), 0, found.weights, found.preprocessing, provenance)


def export_weights(net: Path, out: Path, *, dense: bool = False) -> list[Path]:
    """Writes the net of a run directory or checkpoint as .safetensors, .pth or .onnx; `dense`: ONNX for whole images.

    Beside .safetensors a model card. Returns the files written. Raises UserError, also where a card that was edited
    would be lost.
    """
    from vggrepro import checkpoint
    from vggrepro.models.weights import write

    kept = checkpoint.load(_final_of(net) if net.is_dir() else net)
    model = {key: setting for key, setting in kept.config["model"].items() if key != "init"}
    classes = kept.provenance["classes"]
    card = place_of(out) if out.suffix == ".safetensors" else None
    write(
        out,
        kept.weights,
        model=model,
        preprocessing=kept.preprocessing,
        classes=classes,
        testing=_testing(kept),
        dense=dense,
    )
    if card is None:
        return [out]
    run = RunDirectory(net if net.is_dir() else net.parent.parent)
    text = model_card(kept, checkpoint.weights_hash(kept.weights), run, out)
    RunDirectory(card.parent).write_text(card.name, text)
    return [out, card]


def _testing(kept: Checkpoint) -> dict[str, Any] | None:
    """How the paper would test a net, from how it was trained (Sections 4.1, 4.2); None where that is not known."""
    if imported := kept.provenance.get("imported"):
        return imported.get("testing")
    stage = kept.stage
    Q = {"single_Q": list(stage.single_Q), "multi_Q": list(stage.multi_Q)}
    return {"S": kept.config["data"]["S"]} | Q | {"flip": stage.evaluation.flip}


def verify_paper(
    files: Mapping[str, Path], index: Path, runs: Path, overrides: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The rows of Tables 3-6 that the authors' nets determine, measured; None on all ranks but the first.

    `files` are the authors' weights by column of Table 1. Posteriors are kept under `runs`, so that an interrupted
    verification goes on where it was. Raises UserError and Interrupted.
    """
    from vggrepro.evaluation.verify import METHODS, SCALES, verify
    from vggrepro.models.weights import read

    nets, sources = [], {}
    for net, file in files.items():
        run, imported = RunDirectory(runs / net), read(file, net=net)
        nets.append((file, _checkpoint_of(imported, run.path), run))
        sources[net] = imported.source
    found = _evaluate(nets, METHODS, SCALES, [f"data.index={json.dumps(str(index))}", *overrides])
    if found is None:
        return None
    return {"weights": sources} | verify({net: one.scored for net, one in zip(files, found, strict=True)})
