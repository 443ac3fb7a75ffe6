"""The stage graph on this machine: which run needs which, what is there already, what is still to be done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggrepro.config import Config, Data, Graph, flatten, override
from vggrepro.distributed import Topology, first_rank_first, from_first_rank, pick_device, process_group, topology
from vggrepro.errors import UserError
from vggrepro.evaluation.measure import Scored, measure, missing_Q, scored
from vggrepro.progress import progress, say
from vggrepro.reporting.render import Format, render
from vggrepro.reporting.runs import StoredRun
from vggrepro.reporting.tables import build_report
from vggrepro.stages import is_finished, require_finished
from vggrepro.tracking import MlflowMirror, RunDirectory, resolve_uri, ui_command
from vggrepro.watch import Interrupted, Watch

if TYPE_CHECKING:
    import torch

    from vggrepro.checkpoint import Checkpoint
    from vggrepro.data.index import Index
    from vggrepro.data.loader import Loader

_MLFLOW_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Session:
    """What all stages of one command share: this rank's place, device and watch, and the data sets opened so far."""

    here: Topology
    device: torch.device
    watch: Watch
    indexes: dict[Data, Index]

    def loader(self, config: Config) -> Loader:
        """What renders the pictures of a stage. Raises UserError."""
        from vggrepro.data.loader import make_loader

        return make_loader(config.data, self.device, self.here.local_world)

    def index(self, config: Config) -> Index:
        """The data set of a stage; rank 0 makes what others then find made. Raises UserError."""
        from vggrepro.data.loader import open_data

        if config.data not in self.indexes:
            with (
                first_rank_first(self.here),
                progress("reading picture headers", None, shown=self.here.is_first) as update,
            ):
                self.indexes[config.data] = open_data(config, lambda done, total: update(done, f"of {total}"))
        return self.indexes[config.data]


@contextmanager
def session(
    configs: list[Config], *, training: bool = True, stop_after_s: float | None = None
) -> Iterator[Session]:
    """Checks what can be checked before anything is spent, then joins the ranks. Raises UserError.

    Without `training`, any number of ranks will do. After `stop_after_s` seconds of wall time the work is asked to
    stop, as by a signal; where it can be left, Interrupted is then raised.
    """
    from vggrepro.training.stage import architecture_of
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
    at = Session(here, device, watch, {})
    for config in configs:
        at.loader(config)
    # The watch names a silent rank; a collective's own time-out, which names none, comes later.
    with process_group(here, device, timeout_s=max(300.0, 2 * silence_s)), watch:
        yield at


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
        departures = stage.begin(config, parent, index, run)
        say(f"{config.name}: departs from the paper in {len(departures)} settings, see {run.path / 'ledger.json'}")
    with _mirrored(config, run, at.here):
        train(config, parent, index, at.loader(config), at.here, run, at.watch, force=force)


def evaluate_stage(config: Config, at: Session) -> None:
    """Stores the posteriors of a finished stage at every Q its tables need, and logs the errors. Raises UserError."""
    from vggrepro.evaluation.stage import evaluate
    from vggrepro.training.stage import check_data, load_final, net_of

    run = RunDirectory(config.directory)
    weights = weights_of(config)
    index = at.index(config)
    check_data(config, index)
    wanted = {*config.single_Q, *config.multi_Q}
    if not from_first_rank(missing_Q(config, weights, index.fingerprint, run, wanted)):
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
            wanted,
        )
        if at.here.is_first:
            record: dict[str, Any] = {"kind": "evaluation", "step": config.train.iterations}
            for scale, Q in (("single", config.single_Q), ("multi", config.multi_Q)):
                result = measure(config, weights, index.fingerprint, run, Q)
                assert result is not None
                record |= {f"dense_{scale}_Q_top1_error": result.top1.percent}
                record |= {f"dense_{scale}_Q_top5_error": result.top5.percent, "n": result.top1.n}
            run.append(record)


def reproduce(graph: Graph) -> Path | None:
    """Trains what is missing, parents first, evaluates, prints and writes the tables; every rank calls it.

    Returns the tables' file on rank 0. Raises UserError.
    """
    stages = list(graph.stages.values())
    with session(stages) as at:
        for name, config in graph.stages.items():
            parent = graph.parents[name]
            train_stage(config, graph.stages[parent] if parent else None, at)
            evaluate_stage(config, at)
        if not at.here.is_first:
            return None
    report = build_report([StoredRun(config.directory, config) for config in stages])
    title = f"{graph.name}: measured beside printed"
    text = render(report, Format.markdown, title, counts=False)
    folder = RunDirectory(stages[0].run.root / graph.name)
    folder.write_text("tables.md", text)
    folder.write_text("tables.html", render(report, Format.html, title, counts=False))
    print(text)
    say(f"tables written to {folder.path / 'tables.md'} and tables.html")
    if stages[0].tracking.mlflow:
        say(f"runs side by side in MLflow: {ui_command(resolve_uri(stages[0].tracking.uri, stages[0].run.root))}")
    return folder.path / "tables.md"


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
    departures = run.read_json("ledger.json") or []
    mirror = MlflowMirror(
        run,
        uri=resolve_uri(config.tracking.uri, root),
        experiment=config.run.experiment,
        run_name=config.name,
        params={key: str(setting) for key, setting in flatten(config.model_dump(mode="json")).items()},
        tags={"stage": config.name, "net": config.model.net, "departures": str(len(departures))},
        artifact_root=root / "mlartifacts",
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
        names = ("config.yaml", "dataset.json", "environment.json", "ledger.json")
        mirror.log_artifacts(run.path / name for name in names if (run.path / name).exists())
        mirror.close(status, _MLFLOW_PATIENCE_S)  # type: ignore[arg-type]


def evaluate_nets(
    nets: list[Path], method: str, scales: tuple[int, ...] | None, overrides: list[str]
) -> dict[str, Scored] | None:
    """The posteriors of some nets, each a run directory or a checkpoint, by name; None on all ranks but the first.

    Each is averaged over `scales`, or where that is None over its own configuration's Q. What is not stored yet is
    computed with the preprocessing that the net's weights were made for, and kept in its run directory. Raises
    UserError.
    """
    from vggrepro import checkpoint
    from vggrepro.evaluation.stage import as_the_net_expects, evaluate
    from vggrepro.training.stage import net_of

    files = [checkpoint.final_file(net / "checkpoints") if net.is_dir() else net for net in nets]
    kept = [checkpoint.load(file) for file in files]
    configs = [override(one.stage, overrides, file) for one, file in zip(kept, files, strict=True)]
    if scales:
        change = [f"evaluation.single_Q={list(scales)}"]
        configs = [override(config, change, file) for config, file in zip(configs, files, strict=True)]
    result: dict[str, Scored] = {}
    pictures = set()
    with session(configs, training=False) as at:
        for net, file, one, config in zip(nets, files, kept, configs, strict=True):
            index = at.index(config)
            pictures.add(index.fingerprint)
            if len(pictures) > 1:
                raise UserError(f"{net} and {nets[0]} are of different pictures; give all of them the same data.index")
            _require_classes(one, index, file)
            directory = RunDirectory(net if net.is_dir() else file.parent.parent)
            weights = checkpoint.weights_hash(one.weights)
            loader = as_the_net_expects(at.loader(config), one.preprocessing)
            make_net = partial(net_of, one, at.device)
            Q = config.single_Q
            evaluate(config, weights, make_net, index, loader, at.here, directory, at.watch, Q, (method,))
            if at.here.is_first:
                found = scored(config, weights, index.fingerprint, directory.posteriors, Q, method)
                assert found is not None
                result[str(net)] = found
    return result if at.here.is_first else None


def _require_classes(net: Checkpoint, index: Index, file: Path) -> None:
    """Raises UserError when the index has other classes, or another order of them, than the net was trained on."""
    known = net.provenance["classes"]  # None for imported weights that do not say
    if known is not None and list(index.classes) != known:
        raise UserError(f"{index.source} has other classes than {file} was trained on; set data.root to the same ones")
