"""Tests of nets that predict boxes (Appendix A), for a stage's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.settings import Config
from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.images.index import Index
from vggrepro.data.loading.loader import Batch
from vggrepro.errors import UserError
from vggrepro.evaluation.box_store import DENSE, FoundKey, Places, merge_places, save_truth
from vggrepro.evaluation.boxes import Found, Guesses, error_of, guesses_key
from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.localise import Annotated, annotated, boxes_at_places, centre_boxes
from vggrepro.evaluation.measure import NetResults
from vggrepro.evaluation.methods import centre_views, uncropped_views
from vggrepro.evaluation.predictions import predictions
from vggrepro.evaluation.run_split import Computation, SplitPass
from vggrepro.evaluation.store import Key
from vggrepro.models.vgg import VGG
from vggrepro.pipeline.done import is_stored
from vggrepro.pipeline.figures import draw_box_figures
from vggrepro.pipeline.net import Net
from vggrepro.pipeline.session import Session
from vggrepro.pipeline.tracking import mirrored
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.training.stage import load_final, net_of, weights_of


@dataclass(frozen=True)
class BoxNet:
    """Net that predicts boxes, and its parent stage, which predicts classes and scores the positions."""

    net: Net
    parent: Config

    @property
    def config(self) -> Config:
        """Configuration under which the net is tested."""
        return self.net.config

    def opened(self, session: Session) -> tuple[VGG, VGG]:
        """Loads both nets. Raises UserError if the parent's weights have changed since."""
        checkpoint, current = self.net.load(), weights_of(self.parent)
        if (original := checkpoint.provenance["parent"]["weights"]) != current:
            raise UserError(
                f"{self.config.name} started from net {original[:12]}, but {self.parent.directory} has {current[:12]}; "
                f"restore that net, or train {self.config.name} again under another run.name"
            )
        return net_of(checkpoint, session.device), net_of(load_final(self.parent), session.device)


PooledNet = tuple[BoxNet, tuple[int, ...]]
"""Net and the Q at which it predicts boxes, in pixels."""


def evaluate_boxes(config: Config, parent: Config, session: Session) -> None:
    """Stores a stage's boxes for Tables 8 and 9, with classes from its parent's dense test. Raises UserError."""
    session.stage_data(config)
    net = BoxNet(Net.of_stage(config), parent)
    run, test = net.net.run, BoxTest.opened(config, session)
    if from_first_rank(is_stored(config, parent)):
        return
    guesses = test.guesses([parent], DENSE)
    with mirrored(config, run, session.topology):
        test.predict(net, guesses, {*config.single_Q, *config.multi_Q}, centre=True)
        with session.watch.waiting():
            if session.topology.is_first:
                if record := net.net.new_record(test.errors_by_name(net, guesses)):
                    run.append(record)
                draw_box_figures(config, run, test.pooled([(net, config.multi_Q)], guesses), test.images, session)
            from_first_rank(None)


@dataclass(frozen=True)
class PooledErrors:
    """Errors of the pooled boxes of several nets."""

    nets: tuple[str, ...]
    Q: tuple[tuple[int, ...], ...]
    """Q per net, in pixels."""
    localisation: ErrorRate
    """ILSVRC's measure, Tables 9 and 10: none of five guesses has the true class and a correct box."""
    given_class: ErrorRate
    """Measure of Table 8: the box of the true class is wrong."""


@dataclass(frozen=True)
class BoxTest:
    """Tests on the validation images that have boxes."""

    session: Session
    index: Index
    boxes: BoxSet
    images: Annotated

    @classmethod
    def opened(cls, config: Config, session: Session) -> BoxTest:
        """Opens the data set of a stage. Raises UserError."""
        index, boxes = session.index(config), session.boxes(config)
        assert boxes is not None
        return cls(session, index, boxes, annotated(index, boxes, "val"))

    def results(self, net: BoxNet) -> NetResults:
        """Returns the stored results of a net for these images."""
        return net.net.results(self.index.fingerprint, self.boxes.fingerprint)

    def guesses(self, stages: Sequence[Config], method: str) -> Guesses:
        """Predicts classes from the posteriors of several stages. Raises UserError if posteriors are missing."""
        sources, tests = [], []
        for stage in stages:
            net, Q = Net.of_stage(stage), stage.multi_Q
            test = net.results(self.index.fingerprint).test(method, Q)
            if test is None:
                sides = ",".join(map(str, Q))
                raise UserError(
                    f"{stage.directory} has no {method} posteriors of {self.index.source} at Q = {sides} to guess the "
                    f"classes; run `vggrepro evaluate {stage.directory} --method {method} --scales {sides}`"
                )
            sources.append((net.weights, method, Q))
            tests.append(test)
        predicted, rows = predictions(tests), self.images.rows
        scales = " + ".join(dict.fromkeys(", ".join(map(str, stage.multi_Q)) for stage in stages))
        return Guesses(
            classes=predicted.guesses[rows].astype(np.int64),
            key=guesses_key(sources),
            source=f"{' + '.join(stage.name for stage in stages)}: {method}, Q = {scales}",
            top5=error_of(predicted.right5[rows]).percent,
        )

    def predict(self, net: BoxNet, guesses: Guesses, Q: set[int], *, centre: bool = False) -> None:
        """Stores a net's boxes at all positions and Q, and with `centre` the centre crop's; every rank calls it."""
        results, split, crop = self.results(net), self.images.split, net.config.model.crop
        if self.session.topology.is_first:  # before the boxes, which are never stored without it
            save_truth(self.images.truth, results.run, results.data, results.boxes)
        keys: list[Key[Any]] = [results.centre_boxes(net.config.single_Q[0])] if centre else []
        keys += results.places(sorted(Q), guesses.key)
        missing = from_first_rank([key for key in keys if not key.exists(results.run)])
        if not missing:
            return
        predictor, scorer = net.opened(self.session)
        batch, labels = results.testing.batch, split.label[:, None]
        classes = np.concatenate([guesses.classes, labels], axis=1)
        shown = SplitPass(split, self.session.loader(net.config), self.session.watch, results.testing.precision)

        def centre_box(crops: Batch) -> NDArray[np.float64]:
            return centre_boxes(predictor(crops.images), crops)

        def places(images: Batch) -> NDArray[np.float64]:
            return boxes_at_places(predictor, scorer, images, classes[images.views.image], batch * crop**2)

        for key in missing:
            if isinstance(key, FoundKey):
                side = key.parts[0].Q
                views = centre_views(split, side, batch, crop)
                computation = Computation(key, centre_box, lambda _, boxes: Found(boxes.reshape(-1, 1, 4), labels))
            else:
                side = key.Q
                views = uncropped_views(split, side, batch, crop)
                computation = Computation(key, places, lambda start, values: Places(start, values, classes))
            shown.store([computation], results.run, views, f"boxes, {key.method} at Q={side}")

    def pooled(self, nets: Sequence[PooledNet], guesses: Guesses) -> Found:
        """Returns the merged boxes of several nets at their Q, and stores them. Only the first rank calls it."""
        first, _ = nets[0]
        assert first.config.localisation is not None
        run, below = first.net.run, first.config.localisation.merge_below
        parts = [(key, net.net.run) for net, Q in nets for key in self.results(net).places(Q, guesses.key)]
        final = FoundKey(tuple(key for key, _ in parts), below)
        merged = final.load(run)
        if merged is None:
            sets = [places for key, folder in parts if (places := key.load(folder))]
            assert len(sets) == len(parts), parts
            merged = merge_places(sets, below)
            final.save(run, merged, guesses=guesses.source, top5=guesses.top5)
        return merged

    def errors(self, nets: Sequence[PooledNet], guesses: Guesses) -> PooledErrors:
        """Measures the errors of the pooled boxes of several nets at their Q."""
        boxes, truth = self.pooled(nets, guesses), self.images.truth
        names, Q = tuple(net.config.name for net, _ in nets), tuple(sides for _, sides in nets)
        return PooledErrors(names, Q, error_of(boxes.right(truth)), error_of(boxes.right_given_class(truth)))

    def baselines(self) -> tuple[ErrorRate, ErrorRate]:
        """Measures the errors, given the class, of the full image as the box and of random boxes."""
        truth = self.images.truth
        full, random = truth.hits(truth.full_image_boxes()), truth.hits(truth.random_boxes())
        return error_of(full[:, 0]), error_of(random[:, 0])

    def errors_by_name(self, net: BoxNet, guesses: Guesses) -> dict[str, float]:
        """Measures a stage's errors in per cent, by their names in `metrics.jsonl`, and n."""
        config, truth = net.config, self.images.truth
        centre = self.results(net).centre_boxes(config.single_Q[0]).load(net.net.run)
        assert centre is not None
        given = error_of(centre.right_given_class(truth)).percent
        named: dict[str, float] = {"n": len(truth.labels), "centre_single_Q_given_class_error": given}
        for name, Q in {"multi_Q": config.multi_Q, "single_Q": config.single_Q}.items():
            errors = self.errors([(net, Q)], guesses)
            named[f"dense_{name}_localisation_error"] = errors.localisation.percent
            named[f"dense_{name}_given_class_error"] = errors.given_class.percent
        return named
