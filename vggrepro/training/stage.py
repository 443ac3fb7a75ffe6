"""One stage: from its configuration to its final checkpoint, in its run directory."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vggrepro import checkpoint
from vggrepro.config import Config
from vggrepro.data.index import Index
from vggrepro.data.loader import Loader
from vggrepro.data.plan import TrainingPlan
from vggrepro.distributed import Topology, from_first_rank
from vggrepro.errors import UserError
from vggrepro.evaluation.methods import centre_error
from vggrepro.ledger import Departure, ledger
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import Architecture, architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.warm_start import warm_start
from vggrepro.progress import progress, say
from vggrepro.stages import require_finished
from vggrepro.tracking import RunDirectory, environment
from vggrepro.training.loop import Trainer
from vggrepro.training.schedule import Plateau, after_validation, learning_rate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """Where a run stands, besides weights and momentum."""

    step: int = 0
    """Iterations done."""
    schedule: Plateau = field(default_factory=Plateau)
    best_error: float | None = None
    """Lowest validated top-1 error, per cent; `best.pt` has it."""


def architecture_of(config: Config) -> Architecture:
    """The net a configuration describes. Raises UserError."""
    model = config.model
    return architecture(
        model.net,
        layers=model.layers,
        batch_norm=model.batch_norm,
        classes=model.classes,
        crop=model.crop,
        width=model.width,
        dropout=model.dropout,
    )


def check_data(config: Config, index: Index) -> None:
    """Holds the data set against the one the run directory was begun with. Raises UserError."""
    kept = RunDirectory(config.directory).read_json("dataset.json")
    if kept and kept["fingerprint"] != index.fingerprint:
        raise UserError(
            f"run directory {config.directory} was begun with other pictures ({kept['source']}, {kept['splits']}) "
            f"than {index.source} now has; choose another run.experiment, or restore the pictures"
        )


def load_final(config: Config) -> checkpoint.Checkpoint:
    """The final net of a finished stage. Raises UserError when the stage is not finished."""
    require_finished(config)
    return checkpoint.load(checkpoint.final_file(config.directory / "checkpoints"))


def net_of(kept: checkpoint.Checkpoint, device: torch.device) -> VGG:
    """The net of a checkpoint, in evaluation mode, channels last."""
    net = VGG(architecture_of(kept.stage))
    net.load_state_dict(kept.weights)
    return net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def train(
    config: Config, parent: Config | None, index: Index, loader: Loader, here: Topology, run: RunDirectory
) -> None:
    """Trains a stage to its end, from its newest checkpoint where there is one; every rank calls it.

    Leaves `final.pt` in the run directory. Raises UserError.
    """
    folder = run.checkpoints
    training, validation = index.split("train"), index.split("val")
    plan = TrainingPlan(training.size, config.data, config.model.crop, config.run.seed)
    net, kept, state = _start(config, parent, index, folder, here)
    trainer = Trainer(net.to(loader.device, memory_format=torch.channels_last), config, here, loader.device)  # type: ignore[call-overload]
    trainer.set_momentum(kept.training["momentum"] if kept.training else {})
    if here.is_first:
        run.rewind(state.step)

    def epochs(step: int) -> float:
        return step * config.train.batch / plan.pictures

    def rate(step: int) -> float:
        return learning_rate(config.train.learning_rate, config.train.schedule, state.schedule, step)

    def save(file: Path, *, final: bool = False) -> bool:
        full = {"momentum": trainer.momentum(), "state": asdict(state)}
        content = replace(
            kept,
            step=state.step,
            weights={name: tensor.cpu() for name, tensor in net.state_dict().items()},
            training={} if final else full,
        )
        try:
            checkpoint.save(content, file)
        except OSError as error:
            _log.warning("%s; the one before it is kept", error)
            return False
        return True

    last = config.train.iterations
    with progress(f"{config.name}: training", last, shown=here.is_first) as update:
        steps = trainer.run(loader, training, plan, state.step, rate, config.train.log_every)
        for step, report in steps:
            state = replace(state, step=step)
            if report and here.is_first:
                run.append({"kind": "train", "epoch": epochs(step)} | asdict(report))
                update(
                    step, f"loss {report.loss:.4f}  rate {report.learning_rate:g}  {report.images_per_s:.0f} images/s"
                )
            period = config.train.validate_every
            validated = step == last or int(epochs(step) / period) > int(epochs(step - 1) / period)
            improved = False
            if validated:
                Q = config.single_Q[0]
                errors = centre_error(net, loader, validation, Q, batch=config.evaluation.batch, here=here)
                error = errors[1].percent
                schedule = after_validation(state.schedule, error, config.train.schedule)
                dropped = schedule.drops > state.schedule.drops
                improved = state.best_error is None or error < state.best_error
                state = replace(state, schedule=schedule, best_error=error if improved else state.best_error)
                if here.is_first:
                    record = {"top1_error": error, "top5_error": errors[5].percent, "n": errors[1].n}
                    run.append({"kind": "validation", "step": step, "epoch": epochs(step), "Q": Q} | record)
                    line = f"{config.name}: epoch {epochs(step):.1f}  centre-crop top-1 error {error:.1f} %"
                    if dropped:
                        line += f"; no better for {config.train.schedule.patience} validations: learning rate drop "
                        line += f"{schedule.drops} of {config.train.schedule.max_drops}"
                        run.append(
                            {"kind": "event", "step": step, "event": "learning rate drop", "drop": schedule.drops}
                        )
                    say(line)
            if here.is_first and (validated or step % config.train.checkpoint_every == 0):
                file = checkpoint.step_file(folder, step)
                if save(file):
                    if improved:
                        _link(file, checkpoint.best_file(folder))
                    checkpoint.prune(folder, config.train.keep)
    if here.is_first and not save(checkpoint.final_file(folder), final=True):
        raise UserError(
            f"the final checkpoint does not fit into {folder}; free some space and run the same command again"
        )


def _start(
    config: Config, parent: Config | None, index: Index, folder: Path, here: Topology
) -> tuple[VGG, checkpoint.Checkpoint, State]:
    """The net to go on from, what its checkpoints carry besides, and where it stands."""
    net = VGG(architecture_of(config))
    kept = checkpoint.newest(folder)
    if kept:
        net.load_state_dict(kept.weights)
        saved = kept.training["state"]
        state = State(saved["step"], Plateau(**saved["schedule"]), saved["best_error"])
        if from_first_rank(state.step) != state.step:
            raise UserError(f"ranks see different checkpoints in {folder}; put run.root on a shared file system")
        if here.is_first:
            say(f"{config.name}: goes on from step {state.step}")
        return net, kept, state
    init_weights(net, config.model.init, config.run.seed)
    provenance: dict[str, Any] = {
        "data": index.fingerprint,
        "classes": list(index.classes),
        "versions": environment(),
        "parent": _inherit(net, parent, index, here) if parent else None,
    }
    preprocessing = {"channels": "RGB", "range": [0, 255], "mean": list(config.data.mean), "std": [1.0, 1.0, 1.0]}
    return net, checkpoint.Checkpoint(config.model_dump(mode="json"), 0, {}, preprocessing, provenance), State()


def _inherit(net: VGG, parent: Config, index: Index, here: Topology) -> dict[str, Any]:
    """Copies the parent's layers into the net; returns the parent's name, weights hash and the layer map."""
    origin = load_final(parent)
    if origin.provenance["classes"] != list(index.classes):
        raise UserError(f"parent {parent.name} was trained on other classes than {index.source} has; train it on these")
    layers = warm_start(net, origin.weights, architecture_of(origin.stage))
    if here.is_first:
        say(f"{net.architecture.name} starts from {parent.name}:")
        for line in layers.table():
            say(f"  {line}")
    return {"name": parent.name, "weights": checkpoint.weights_hash(origin.weights)} | layers.to_dict()


def begin(config: Config, parent: Config | None, index: Index, run: RunDirectory) -> list[Departure]:
    """Writes what makes the run directory self-contained; returns the fidelity ledger. Rank 0 only."""
    summary = index.summary()
    departures = ledger(config, parent, {name: summary["splits"][name] for name in ("train", "val")})
    run.write_text("config.yaml", config.to_yaml())
    run.write_json("dataset.json", summary)
    run.write_json("environment.json", environment())
    run.write_json("ledger.json", [asdict(departure) for departure in departures])
    return departures


def _link(file: Path, name: Path) -> None:
    """Gives a file a second name, in place of what had it."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.link(file, temporary)
    temporary.replace(name)
