"""Trained nets, with their training and test configurations."""

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
    """Trained net."""

    path: Path
    """Run directory or checkpoint that names it."""
    config: Config
    """Configuration under which it is tested."""
    stage: Config
    """Configuration under which it was trained."""
    weights: str
    """SHA-256 of the net (`checkpoint.weights_hash`)."""
    step: int
    """Iterations of training."""
    run: RunDirectory
    """Run directory of its results."""
    load: Callable[[], Checkpoint]

    @classmethod
    def of_stage(cls, config: Config) -> Net:
        """Opens the final net of a finished stage. Raises UserError."""
        run, step = RunDirectory(config.directory), config.train.iterations
        return cls(run.path, config, config, weights_of(config), step, run, lambda: load_final(config))

    @classmethod
    def at(cls, path: Path, changes: Sequence[str]) -> Net:
        """Opens a net by its run directory or checkpoint, with `section.key=value` changes. Raises UserError."""
        file, folder = locate(path)
        checkpoint = load(file)
        stage = stage_at(folder) if path.is_dir() else checkpoint.stage
        return cls.of_checkpoint(path, checkpoint, stage, folder, changes)

    @classmethod
    def of_checkpoint(
        cls, path: Path, checkpoint: Checkpoint, stage: Config, folder: Path, changes: Sequence[str]
    ) -> Net:
        """Opens the net of a checkpoint of `stage`, with results in the run directory `folder`. Raises UserError."""
        config, weights = override(stage, changes, path), weights_hash(checkpoint.weights)
        return cls(path, config, stage, weights, checkpoint.step, RunDirectory(folder), lambda: checkpoint)

    @property
    def name(self) -> str:
        """Name of the net as `experiment:stage`."""
        return f"{self.config.run.experiment}:{self.config.name}"

    @property
    def layer(self) -> str:
        """Name of the layer whose activations are its features."""
        return architecture_of(self.config).feature_layer

    @property
    def predicts_boxes(self) -> bool:
        """Whether it predicts boxes instead of classes."""
        return self.load().stage.localisation is not None

    def under(self, settings: Transfer) -> Net:
        """Returns a copy whose features are tested with other settings."""
        return replace(self, config=self.config.model_copy(update={"transfer": settings}))

    def results(self, data: str, boxes: str = "") -> NetResults:
        """Returns the stored results for images and boxes with these fingerprints."""
        return NetResults(self.run, self.weights, data, self.config.evaluation, boxes)

    def opened(self, session: Session) -> tuple[VGG, Loader]:
        """Loads the net to this rank's device, and returns a loader with the preprocessing of its weights."""
        checkpoint = self.load()
        loader = as_the_net_expects(session.loader(self.config), checkpoint.preprocessing)
        return net_of(checkpoint, session.device), loader

    def note_weights(self) -> None:
        """Stores the hash of a run's final net in the run directory. Only the first rank calls it."""
        if self.path.is_dir() and known_weights(self.run) is None:
            note_weights(self.run, self.weights, self.step)

    @property
    def is_as_trained(self) -> bool:
        """Whether it is its run's final net, tested with the run's protocol, so that its errors are the run's."""
        tested, trained = self.config.evaluation, self.stage.evaluation
        final = known_weights(self.run) == self.weights
        return final and (tested.flip, tested.precision) == (trained.flip, trained.precision)

    def new_record(self, figures: Mapping[str, float]) -> dict[str, Any] | None:
        """Makes a record of figures for `metrics.jsonl`; None if all are logged already."""
        record = {"kind": "evaluation", "step": self.config.train.iterations, **figures}
        return None if self.run.already_logged("evaluation", record) else record

    def log(self, figures: Mapping[str, float], session: Session) -> None:
        """Logs new figures to the run's metrics and to MLflow. Only the first rank calls it."""
        if record := self.new_record(figures):
            sections = {"evaluation": self.stage.evaluation, "transfer": self.stage.transfer}
            config = relocated(self.config.model_copy(update=sections), self.run.path)
            with mirrored(config, self.run, session.topology):
                self.run.append(record)
