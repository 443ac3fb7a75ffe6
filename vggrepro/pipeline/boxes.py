"""Nets that predict boxes, tested (Appendix A): what a stage's tables need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.evaluation.box_store import (
    DENSE,
    FoundProtocol,
    NetProtocols,
    load_found,
    load_places,
    merge_places,
    save_found,
    save_truth,
)
from vggrepro.evaluation.boxes import BoxErrors, Found, error_of
from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.guesses import Guesses, Source, guesses_key, guesses_of
from vggrepro.evaluation.measure import scored
from vggrepro.pipeline.figures import draw_box_figures
from vggrepro.pipeline.session import Session
from vggrepro.pipeline.tracking import mirrored
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import known_weights

if TYPE_CHECKING:
    from vggrepro.data.boxes import BoxSet
    from vggrepro.data.index import Index
    from vggrepro.data.views import Ints
    from vggrepro.evaluation.localise import Annotated
    from vggrepro.models.vgg import VGG


@dataclass(frozen=True)
class BoxNet:
    """A net that predicts boxes, and the one that it started from, which predicts classes and scores the places."""

    config: Config
    parent: Config

    @property
    def run(self) -> RunDirectory:
        """Where its boxes are stored."""
        return RunDirectory(self.config.directory)

    @cached_property
    def weights(self) -> str:
        """Hash of the net. Raises UserError when it is not finished."""
        from vggrepro.training.stage import weights_of

        return weights_of(self.config)

    def nets(self, session: Session) -> tuple[VGG, VGG]:
        """The two nets. Raises UserError where the parent is not the one that it started from."""
        from vggrepro.training.stage import load_final, net_of, weights_of

        kept, found = load_final(self.config), weights_of(self.parent)
        if (began := kept.provenance["parent"]["weights"]) != found:
            raise UserError(
                f"{self.config.name} started from a net {began[:12]}, and {self.parent.directory} holds {found[:12]}; "
                f"restore that net, or train {self.config.name} again under another run.name"
            )
        return net_of(kept, session.device), net_of(load_final(self.parent), session.device)

    @property
    def merge_below(self) -> float:
        """Where merging stops."""
        assert self.config.localisation is not None
        return self.config.localisation.merge_below


AskedNet = tuple[BoxNet, tuple[int, ...]]
"""A net and the Q at which its boxes are taken, px."""


def evaluate_boxes(config: Config, parent: Config, session: Session) -> None:
    """Stores the boxes of a finished stage that Tables 8 and 9 need, and logs the errors. Raises UserError.

    The guessed classes are those of the parent's posteriors, dense at its own Q of Table 4.
    """
    from vggrepro.training.stage import check_data

    net, run = BoxNet(config, parent), RunDirectory(config.directory)
    test = BoxTest.opened(config, session)
    check_data(config, test.index, test.boxes)
    if from_first_rank(has_boxes(config, parent, net.weights, run.read_json("dataset.json") or {})):
        return
    guesses = test.guesses([parent], DENSE)
    with mirrored(config, run, session.topology):
        test.predict(net, guesses, {*config.single_Q, *config.multi_Q}, centre=True)
        with session.watch.waiting():
            if session.topology.is_first:
                for Q in dict.fromkeys((config.single_Q, config.multi_Q)):
                    test.pooled([(net, Q)], guesses)
                run.append(test.record(net, guesses))
                draw_box_figures(config, run, test.pooled([(net, config.multi_Q)], guesses), test.images, session)
            from_first_rank(None)


def has_boxes(config: Config, parent: Config, weights: str, dataset: dict[str, Any]) -> bool:
    """Whether the boxes that a stage's tables need are stored."""
    net, scorer = BoxNet(config, parent), known_weights(RunDirectory(parent.directory))
    if scorer is None:
        return False
    key = guesses_key([(scorer, DENSE, parent.multi_Q)])
    data, boxes = dataset["fingerprint"], dataset["boxes"]["fingerprint"]
    protocols = NetProtocols(weights, data, boxes, config.evaluation.precision)
    wanted = [protocols.dense(Q, key, net.merge_below) for Q in (config.single_Q, config.multi_Q)]
    wanted.append(protocols.centre(config.single_Q[0]))
    return all(protocol.file(net.run.boxes).exists() for protocol in wanted)


@dataclass(frozen=True)
class BoxTest:
    """The validation images with boxes, and what is done with them."""

    session: Session
    index: Index
    boxes: BoxSet
    images: Annotated
    rows: Ints
    """(n,) their rows in the whole split."""

    @classmethod
    def opened(cls, config: Config, session: Session) -> BoxTest:
        """Of a stage's data set. Raises UserError."""
        from vggrepro.evaluation.localise import annotated

        index, boxes = session.index(config), session.boxes(config)
        assert boxes is not None
        rows = np.flatnonzero(boxes.split("val").has)
        return cls(session, index, boxes, annotated(index, boxes, "val"), rows)

    def protocols(self, net: BoxNet) -> NetProtocols:
        """Under which a net's boxes on these images are stored."""
        precision = net.config.evaluation.precision
        return NetProtocols(net.weights, self.index.fingerprint, self.boxes.fingerprint, precision)

    def guesses(self, stages: Sequence[Config], method: str) -> Guesses:
        """The classes that some stages name together. Raises UserError while posteriors are missing."""
        from vggrepro.training.stage import weights_of

        sources = []
        for stage in stages:
            weights = weights_of(stage)
            Q, folder = stage.multi_Q, RunDirectory(stage.directory).posteriors
            found = scored(stage, weights, self.index.fingerprint, folder, Q, method)
            if found is None:
                sides = ",".join(map(str, Q))
                raise UserError(
                    f"{stage.directory} has no {method} posteriors of {self.index.source} at Q = {sides}, which name "
                    f"the classes; run `vggrepro evaluate {stage.directory} --method {method} --scales {sides}`"
                )
            sources.append(Source(stage.name, weights, found))
        return guesses_of(sources, self.rows)

    def predict(self, net: BoxNet, guesses: Guesses, Q: set[int], *, centre: bool = False) -> None:
        """Stores a net's boxes at every place, at each Q, and with `centre` those of the centre crop; on every rank."""
        from vggrepro.evaluation.localise import Localisation

        made: list[tuple[VGG, VGG]] = []

        def nets() -> tuple[VGG, VGG]:
            if not made:
                made.append(net.nets(self.session))
            return made[0]

        loader, watch = self.session.loader(net.config), self.session.watch
        tests, protocols = Localisation(net.config, self.images, loader, net.run, watch, nets), self.protocols(net)
        if self.session.topology.is_first:  # before any box, so that none is ever without it
            save_truth(self.images.truth, net.run.boxes, self.index.fingerprint, self.boxes.fingerprint)
        if centre:
            tests.centre(protocols.centre(net.config.single_Q[0]).parts[0])
        for protocol in protocols.places(sorted(Q), guesses.key):
            tests.dense(protocol, guesses.classes)

    def pooled(self, asked: Sequence[AskedNet], guesses: Guesses) -> Found:
        """The final boxes of some nets at their Q; merged now, unless they are stored. On the first rank."""
        first, _ = asked[0]
        parts = [(net, one) for net, Q in asked for one in self.protocols(net).places(Q, guesses.key)]
        final = FoundProtocol(tuple(one for _, one in parts), first.merge_below)
        found = load_found(final, first.run.boxes)
        if found is None:
            sets = []
            for net, one in parts:
                places = load_places(one, net.run.boxes)
                assert places is not None, one
                sets.append(places)
            found = merge_places(sets, first.merge_below)
            save_found(final, found, first.run.boxes, guesses=guesses.told, top5=guesses.top5)
        return found

    def errors(self, asked: Sequence[AskedNet], guesses: Guesses) -> BoxErrors:
        """What some nets get wrong at their Q."""
        found, truth = self.pooled(asked, guesses), self.images.truth
        return BoxErrors(error_of(found.right(truth)), error_of(found.right_given_class(truth)))

    def yardsticks(self) -> tuple[ErrorRate, ErrorRate]:
        """Given the class: the whole image, and random boxes."""
        truth = self.images.truth
        whole, random = truth.met_by(truth.whole_images()), truth.met_by(truth.random_boxes())
        return error_of(whole[:, 0]), error_of(random[:, 0])

    def record(self, net: BoxNet, guesses: Guesses) -> dict[str, Any]:
        """The errors of a stage as a record of `metrics.jsonl`."""
        config, truth = net.config, self.images.truth
        centre = load_found(self.protocols(net).centre(config.single_Q[0]), net.run.boxes)
        assert centre is not None
        record: dict[str, Any] = {"kind": "evaluation", "step": config.train.iterations, "n": len(self.rows)}
        record["centre_single_Q_given_class_error"] = error_of(centre.right_given_class(truth)).percent
        for name, Q in {"multi_Q": config.multi_Q, "single_Q": config.single_Q}.items():
            errors = self.errors([(net, Q)], guesses)
            record[f"dense_{name}_localisation_error"] = errors.localisation.percent
            record[f"dense_{name}_given_class_error"] = errors.given_class.percent
        return record
