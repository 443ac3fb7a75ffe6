"""Stage in its run directory: start, state and final net."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from vggrepro.config.settings import Config
from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.images.index import Index
from vggrepro.errors import UserError
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.models.warm_start import warm_start
from vggrepro.models.weights import PREPROCESSING
from vggrepro.progress import echo
from vggrepro.ranks.collectives import from_every_rank
from vggrepro.ranks.topology import Topology
from vggrepro.storage import checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.environment import environment
from vggrepro.storage.ledger import Departure, ledger, write_ledger
from vggrepro.storage.status import final_file, known_weights, note_weights, require_finished
from vggrepro.training.schedule import Plateau


@dataclass(frozen=True)
class State:
    """State of a run, except weights and momentum."""

    step: int = 0
    """Iterations done."""
    schedule: Plateau = field(default_factory=Plateau)
    best_error: float | None = None
    """Lowest validation top-1 error in per cent, that of `best.pt`."""
    validated: int = 0
    """Step of the last validation."""
    loss_sum: float = 0.0
    """Sum of the losses of all images since the last report."""
    unreported: int = 0
    """Steps since the last report."""


def load_final(config: Config) -> checkpoint.Checkpoint:
    """Loads the final net of a stage. Raises UserError if the stage is not finished."""
    require_finished(config)
    return checkpoint.load(final_file(config.directory))


def weights_of(config: Config) -> str:
    """Returns the weights hash of a stage's final net, which is stored. Raises UserError if it is not finished."""
    run = RunDirectory(config.directory)
    weights = known_weights(run)
    if weights is None:
        final = load_final(config)
        weights = checkpoint.weights_hash(final.weights)
        note_weights(run, weights, final.step)
    return weights


def net_of(stored: checkpoint.Checkpoint, device: torch.device) -> VGG:
    """Builds the net of a checkpoint, in evaluation mode and channels last."""
    with torch.device("meta"):  # saves initialising the weights: seconds and half a gigabyte for D
        net = VGG(architecture_of(stored.stage))
    net.load_state_dict(stored.weights, assign=True)
    return net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def start(
    config: Config, parent: Config | None, index: Index, topology: Topology
) -> tuple[VGG, checkpoint.Checkpoint, State]:
    """Returns the net to train, the other parts of its checkpoints, and its state; every rank must call it."""
    net = VGG(architecture_of(config))
    folder = RunDirectory(config.directory).checkpoints
    stored = checkpoint.newest(folder)
    if len(set(from_every_rank(stored.step if stored else None))) > 1:
        raise UserError(f"ranks see different checkpoints in {folder}; put run.root on a shared file system")
    if stored:
        net.load_state_dict(stored.weights)
        saved = stored.training["state"]
        state = State(**saved | {"schedule": Plateau(**saved["schedule"])})
        if topology.is_first:
            echo(f"{config.name}: resumes from step {state.step}")
        return net, stored, state
    init_weights(net, config.model.init, config.run.seed)
    provenance: dict[str, Any] = {
        "data": index.fingerprint,
        "classes": list(index.classes),
        "versions": environment(),
        "parent": _inherit(net, parent, index, topology) if parent else None,
    }
    preprocessing = PREPROCESSING["paper"] | {"mean": list(config.data.mean)}
    return net, checkpoint.Checkpoint(config.model_dump(mode="json"), 0, {}, preprocessing, provenance), State()


def _inherit(net: VGG, parent: Config, index: Index, topology: Topology) -> dict[str, Any]:
    """Copies the parent's layers into the net; returns the parent's name, weights hash and layer map."""
    origin = load_final(parent)
    if origin.provenance["classes"] != list(index.classes):
        raise UserError(f"the classes of parent {parent.name} are not those of {index.source}; train it on that data")
    inherited = warm_start(net, origin.weights, architecture_of(origin.stage))
    if topology.is_first:
        echo(f"{net.architecture.name} starts from {parent.name}:")
        for layer in inherited:
            echo(f"  {layer}")
    weights = checkpoint.weights_hash(origin.weights)
    return {"name": parent.name, "weights": weights, "layers": [asdict(layer) for layer in inherited]}


def begin(config: Config, parent: Config | None, index: Index, boxes: BoxSet | None, ranks: int) -> list[Departure]:
    """Writes the descriptive files of the run directory; returns the fidelity ledger. Only rank 0 calls it."""
    run = RunDirectory(config.directory)
    summary = index.summary() | ({"boxes": boxes.summary()} if boxes else {})
    departures = ledger(config, parent, summary)
    run.write_text("config.yaml", config.to_yaml())
    run.write_json("dataset.json", summary)
    run.write_json("environment.json", environment() | {"ranks": ranks})
    write_ledger(run, departures)
    return departures
