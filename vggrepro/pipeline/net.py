"""A net that was trained, with how it was trained and how it is tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vggrepro.config.parsing import override
from vggrepro.config.settings import Config, Transfer
from vggrepro.data.loading.loader import Loader
from vggrepro.evaluation.measure import NetResults
from vggrepro.evaluation.stage import as_the_net_expects
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.pipeline.session import Session
from vggrepro.pipeline.tracking import mirrored
from vggrepro.storage.checkpoint import Checkpoint, load, weights_hash
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import known_weights, locate, note_weights, relocated, stage_at
from vggrepro.training.stage import load_final, net_of, weights_of


@dataclass(frozen=True)
class Net:
    """A trained net, by itself: :meth:`answers` pairs it with images."""

    path: Path
    """As it was named: its run directory, or a checkpoint."""
    config: Config
    """How it is tested."""
    stage: Config
    """How it was trained."""
    weights: str
    """SHA-256 of the net (`checkpoint.weights_hash`)."""
    step: int
    """Iterations that made it."""
    run: RunDirectory
    """Where its answers are stored."""
    load: Callable[[], Checkpoint]

    @classmethod
    def of_stage(cls, config: Config) -> Net:
        """The final net of a finished stage. Raises UserError."""
        run, step = RunDirectory(config.directory), config.train.iterations
        return cls(run.path, config, config, weights_of(config), step, run, lambda: load_final(config))

    @classmethod
    def at(cls, path: Path, changes: Sequence[str]) -> Net:
        """A net by its run directory or checkpoint, tested with `section.key=value` changes. Raises UserError."""
        file, folder = locate(path)
        found = load(file)
        return cls.of_checkpoint(path, found, stage_at(folder) if path.is_dir() else found.stage, folder, changes)

    @classmethod
    def of_checkpoint(
        cls, path: Path, checkpoint: Checkpoint, stage: Config, folder: Path, changes: Sequence[str]
    ) -> Net:
        """A checkpoint's net, trained as a stage, whose answers are stored in a run directory. Raises UserError."""
        config, weights = override(stage, changes, path), weights_hash(checkpoint.weights)
        return cls(path, config, stage, weights, checkpoint.step, RunDirectory(folder), lambda: checkpoint)

    @property
    def name(self) -> str:
        """`experiment:stage`."""
        return f"{self.config.run.experiment}:{self.config.name}"

    @property
    def layer(self) -> str:
        """Whose activations its features are."""
        return architecture_of(self.config).feature_layer

    @property
    def predicts_boxes(self) -> bool:
        """Whether its checkpoint is of a net that predicts boxes."""
        return self.load().stage.localisation is not None

    def under(self, settings: Transfer) -> Net:
        """The net, whose features are tested in this way."""
        return replace(self, config=self.config.model_copy(update={"transfer": settings}))

    def results(self, data: str, boxes: str = "") -> NetResults:
        """What is stored of it for the images, and boxes, of these fingerprints."""
        return NetResults(self.run, self.weights, data, self.config.evaluation, boxes)

    def opened(self, session: Session) -> tuple[VGG, Loader]:
        """The net on this rank's device, and the loader with the preprocessing that its weights were made for."""
        checkpoint = self.load()
        loader = as_the_net_expects(session.loader(self.config), checkpoint.preprocessing)
        return net_of(checkpoint, session.device), loader

    def note_weights(self) -> None:
        """Notes the hash of a run's final net in the run, where it is not noted yet. First rank only."""
        if self.path.is_dir() and known_weights(self.run) is None:
            note_weights(self.run, self.weights, self.step)

    @property
    def is_as_trained(self) -> bool:
        """Whether it is its run's final net, tested by its own protocol: else its errors are not the run's."""
        tested, own = self.config.evaluation, self.stage.evaluation
        final = known_weights(self.run) == self.weights
        return final and (tested.flip, tested.precision) == (own.flip, own.precision)

    def new_record(self, figures: Mapping[str, float]) -> dict[str, Any] | None:
        """Figures as a record for `metrics.jsonl`; None where it has them all."""
        record = {"kind": "evaluation", "step": self.config.train.iterations, **figures}
        return None if self.run.already_logged("evaluation", record) else record

    def log(self, figures: Mapping[str, float], session: Session) -> None:
        """Adds figures to the run's metrics, and to MLflow, unless they are there. First rank only."""
        if record := self.new_record(figures):
            own = {"evaluation": self.stage.evaluation, "transfer": self.stage.transfer}
            config = relocated(self.config.model_copy(update=own), self.run.path)
            with mirrored(config, self.run, session.topology):
                self.run.append(record)
