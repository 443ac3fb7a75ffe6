"""What the stages of one command share."""

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
    """What all stages of one command share: this rank's place, device and watch, and the data sets opened so far."""

    device: torch.device
    watch: Watch
    indexes: dict[Data, Index]
    box_sets: dict[Data, BoxSet]
    cores: int
    """This rank's share of its machine's."""
    training: bool = True
    """Whether nets are trained: else validation images are enough."""

    @property
    def topology(self) -> Topology:
        """This rank's place."""
        return self.watch.topology

    def loader(self, config: Config) -> Loader:
        """What renders the images of a stage. Raises UserError."""
        return make_loader(config.data, self.device, self.cores)

    @contextmanager
    def opening(self, doing: str) -> Iterator[Update]:
        """Around what rank 0 makes first and the others then find made; progress is shown."""
        with first_rank_first(self.topology), progress(doing, None, shown=self.topology.is_first) as update:
            yield update

    def index(self, config: Config) -> Index:
        """The data set of a stage. Raises UserError."""
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
        """The boxes of a stage's data set, where the stage predicts them. Raises UserError."""
        if config.localisation is None:
            return None
        if config.data not in self.box_sets:
            index = self.index(config)
            with self.opening("reading boxes") as update:
                self.box_sets[config.data] = open_boxes_of(config, index, lambda done: update(done, "annotations"))
        return self.box_sets[config.data]

    def stage_data(self, config: Config) -> tuple[Index, BoxSet | None]:
        """The data set of a stage, with its boxes: the one that its run directory was begun with. Raises UserError."""
        index, boxes = self.index(config), self.boxes(config)
        begun = RunDirectory(config.directory).read_json("dataset.json")
        if begun and boxes and begun["boxes"]["fingerprint"] != boxes.fingerprint:
            raise UserError(
                f"run directory {config.directory} was begun with other boxes ({', '.join(begun['boxes']['sources'])}) "
                f"than {', '.join(boxes.sources)} now has; choose another run.experiment, or restore the annotations"
            )
        if begun and begun["fingerprint"] != index.fingerprint:
            raise UserError(
                f"run directory {config.directory} was begun with other images ({begun['source']}, {begun['splits']}) "
                f"than {index.source} now has; choose another run.experiment, or restore the images"
            )
        return index, boxes


@contextmanager
def open_session(
    configs: list[Config], *, training: bool = True, stop_after_s: float | None = None
) -> Iterator[Session]:
    """Checks what can be checked before anything is spent, then joins the ranks. Raises UserError.

    Without `training`, any number of ranks will do. After `stop_after_s` seconds of wall time the work is asked to
    stop, as by a signal; where it can be left, Interrupted is then raised.
    """
    topology = topology_of(os.environ)
    for config in configs:
        net = architecture_of(config)
        if training:
            require_class_scores(net)
            shard_of(topology, config.train.batch, config.train.micro_batch)
            if reason := why_unwritable(config.run.root):
                raise UserError(
                    f"run.root={config.run.root} cannot be written to ({reason}); set it to a folder that can"
                )
        is_finished(config)
        resolve_uri(config.tracking.uri, config.run.root)
    device = pick_device(configs[0].run.device, topology.local_rank)
    silence_s = configs[0].train.rank_timeout_s
    watch = Watch(topology, silence_s=silence_s, stop_after_s=stop_after_s)
    processes = max(make_loader(config.data, device).processes for config in configs)
    # The watch names a silent rank; a collective's own time-out, which names none, comes later.
    with process_group(topology, device, timeout_s=max(300.0, 2 * silence_s)), watch:
        cores = cores_of_rank()
        with _cores_for_decoding(processes if device.type == "cpu" else 0, cores):
            yield Session(device, watch, {}, {}, cores, training)


@contextmanager
def _cores_for_decoding(processes: int, cores: int) -> Iterator[None]:
    """Leaves a core to each decoding process; else threads that compute wait for the one that has to share its core."""
    threads = torch.get_num_threads()
    if processes:
        torch.set_num_threads(max(1, min(threads, cores - processes)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
