"""The stage graph on this machine: which run needs which, what is there already, what is still to be done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggrepro.config import Config, Data, Graph, flatten, override
from vggrepro.distributed import Topology, first_rank_first, from_first_rank, pick_device, process_group, topology
from vggrepro.errors import UserError
from vggrepro.evaluation.measure import Measured, measure, missing_Q
from vggrepro.progress import progress, say
from vggrepro.reporting.tables import measured_rows, to_markdown
from vggrepro.stages import is_finished, require_finished
from vggrepro.tracking import MlflowMirror, RunDirectory, resolve_uri, ui_command

if TYPE_CHECKING:
    import torch

    from vggrepro.data.index import Index
    from vggrepro.data.loader import Loader

_MLFLOW_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Session:
    """What all stages of one command share: this rank's place, its device, and the data sets opened so far."""

    here: Topology
    device: torch.device
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
def session(configs: list[Config]) -> Iterator[Session]:
    """Checks what can be checked before anything is spent, then joins the ranks. Raises UserError."""
    from vggrepro.training.loop import share_of
    from vggrepro.training.stage import architecture_of

    here = topology(os.environ)
    for config in configs:
        architecture_of(config)
        share_of(here, config.train.batch, config.train.micro_batch)
        is_finished(config)
        resolve_uri(config.tracking.uri, config.run.root)
    device = pick_device(configs[0].run.device, here.local_rank)
    at = Session(here, device, {})
    for config in configs:
        at.loader(config)
    with process_group(here, device):
        yield at


def train_stage(config: Config, parent: Config | None, at: Session) -> None:
    """Trains one stage unless it is finished. Raises UserError, also when the parent is not finished."""
    from vggrepro.training import stage

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
        stage.train(config, parent, index, at.loader(config), at.here, run)


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
    rows = measured_rows(stages)
    text = to_markdown(graph.name, stages, rows)
    folder = RunDirectory(stages[0].run.root / graph.name)
    folder.write_text("tables.md", text)
    print(text)
    say(f"tables written to {folder.path / 'tables.md'}")
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
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        names = ("config.yaml", "dataset.json", "environment.json", "ledger.json")
        mirror.log_artifacts(run.path / name for name in names if (run.path / name).exists())
        mirror.close(status, _MLFLOW_PATIENCE_S)  # type: ignore[arg-type]


def evaluate_net(run: Path, scales: tuple[int, ...] | None, overrides: list[str]) -> Measured | None:
    """The dense errors of a run's final net, or of one of its checkpoints; None on all ranks but the first.

    Posteriors are kept in the run directory. Raises UserError.
    """
    from vggrepro import checkpoint
    from vggrepro.evaluation.stage import evaluate
    from vggrepro.training.stage import net_of

    file = checkpoint.final_file(run / "checkpoints") if run.is_dir() else run
    kept = checkpoint.load(file)
    config = override(kept.stage, overrides, file)
    if scales:
        config = override(config, [f"evaluation.single_Q={list(scales)}"], file)
    weights = checkpoint.weights_hash(kept.weights)
    directory = RunDirectory(run if run.is_dir() else file.parent.parent)
    with session([config]) as at:
        index = at.index(config)
        if list(index.classes) != kept.provenance["classes"]:
            raise UserError(
                f"{index.source} has other classes than {file} was trained on; set data.root to the same ones"
            )
        evaluate(
            config,
            weights,
            lambda: net_of(kept, at.device),
            index,
            at.loader(config),
            at.here,
            directory,
            config.single_Q,
        )
        if not at.here.is_first:
            return None
    return measure(config, weights, index.fingerprint, directory, config.single_Q)
