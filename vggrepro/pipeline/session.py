"""State that the stages of a command share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vggrepro.config.settings import Config, Data
from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.dataset import open_boxes_of, open_data
from vggrepro.data.images.index import Index
from vggrepro.data.loading.loader import Loader, make_loader
from vggrepro.errors import UserError
from vggrepro.files import why_unwritable
from vggrepro.models.table1 import architecture_of, require_class_scores
from vggrepro.progress import Update, progress, warn
from vggrepro.ranks.collectives import cores_of_rank, first_rank_first
from vggrepro.ranks.group import pick_device, process_group
from vggrepro.ranks.topology import Topology, topology_of
from vggrepro.ranks.watch import Watch
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import is_finished
from vggrepro.storage.tracking_uri import resolve_uri
from vggrepro.training.step import shard_of


@dataclass(frozen=True)
class Session:
    """Rank, device, watch and open data sets of a command."""

    device: torch.device
    watch: Watch
    indexes: dict[Data, Index]
    box_sets: dict[Data, BoxSet]
    cores: int
    """Number of this rank's CPU cores."""
    training: bool = True
    """Whether nets are trained; otherwise validation images are sufficient."""

    @property
    def topology(self) -> Topology:
        """Topology of this rank."""
        return self.watch.topology

    def loader(self, config: Config) -> Loader:
        """Creates the loader of a stage. Raises UserError."""
        return make_loader(config.data, self.device, self.cores)

    @contextmanager
    def opening(self, doing: str) -> Iterator[Update]:
        """Runs the block on rank 0 before the others, with progress."""
        with first_rank_first(self.topology), progress(doing, None, shown=self.topology.is_first) as update:
            yield update

    def index(self, config: Config) -> Index:
        """Opens the data set of a stage. Raises UserError."""
        if config.data not in self.indexes:
            with self.opening("reading image headers") as update:
                index = open_data(
                    config, lambda done, total: update(done, f"of {total}", total=total), training=self.training
                )
            self.indexes[config.data] = index
            for note in index.notes if self.topology.is_first else ():
                warn(f"{index.source}: {note}")
        return self.indexes[config.data]

    def boxes(self, config: Config) -> BoxSet | None:
        """Opens the boxes of a stage's data set if the stage predicts boxes. Raises UserError."""
        if config.localisation is None:
            return None
        if config.data not in self.box_sets:
            index = self.index(config)
            with self.opening("reading boxes") as update:
                self.box_sets[config.data] = open_boxes_of(config, index, lambda done: update(done, "annotations"))
        return self.box_sets[config.data]

    def stage_data(self, config: Config) -> tuple[Index, BoxSet | None]:
        """Opens the data set of a stage with its boxes. Raises UserError if it has changed since the run began."""
        index, boxes = self.index(config), self.boxes(config)
        stored = RunDirectory(config.directory).read_json("dataset.json")
        changed = ""
        if stored and boxes and stored["boxes"]["fingerprint"] != boxes.fingerprint:
            changed = f"boxes ({', '.join(stored['boxes']['sources'])}) than {', '.join(boxes.sources)}"
        elif stored and stored["fingerprint"] != index.fingerprint:
            changed = f"images ({stored['source']}, {stored['splits']}) than {index.source}"
        if changed:
            raise UserError(
                f"run directory {config.directory} was begun with other {changed} now has; choose another "
                f"run.experiment, or restore the {changed.partition(' ')[0]}"
            )
        return index, boxes


@contextmanager
def open_session(
    configs: list[Config], *, training: bool = True, stop_after_s: float | None = None
) -> Iterator[Session]:
    """Checks configurations before any expensive work, then joins the ranks. Raises UserError.

    `training` requires a number of ranks that divides the batch. `stop_after_s` seconds of wall time are a request to
    stop, like a signal, which raises Interrupted at the next possible point.
    """
    topology = topology_of(os.environ)
    for config in configs:
        net = architecture_of(config)
        if training:
            require_class_scores(net)
            shard_of(topology, config.train.batch, config.train.micro_batch)
            if reason := why_unwritable(config.run.root):
                raise UserError(f"run.root={config.run.root} is not writable ({reason}); set it to a folder that is")
        is_finished(config)
        resolve_uri(config.tracking.uri, config.run.root)
    device = pick_device(configs[0].run.device, topology.local_rank)
    silence_s = configs[0].train.rank_timeout_s
    watch = Watch(topology, silence_s=silence_s, stop_after_s=stop_after_s)
    processes = max(make_loader(config.data, device).processes for config in configs)
    # The watch names a silent rank; the timeout of a collective, which names none, is longer.
    with process_group(topology, device, timeout_s=max(300.0, 2 * silence_s)), watch:
        cores = cores_of_rank()
        with _cores_for_decoding(processes if device.type == "cpu" else 0, cores):
            yield Session(device, watch, {}, {}, cores, training)


@contextmanager
def _cores_for_decoding(processes: int, cores: int) -> Iterator[None]:
    """Reserves a core for each decoding process, because a thread that shares its core delays the other threads."""
    threads = torch.get_num_threads()
    if processes:
        torch.set_num_threads(max(1, min(threads, cores - processes)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
