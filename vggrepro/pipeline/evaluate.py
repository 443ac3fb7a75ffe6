"""Evaluation of nets by name, and of the authors' nets against the paper."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vggrepro.config.settings import Data
from vggrepro.data.images.index import Index
from vggrepro.errors import UserError
from vggrepro.evaluation.measure import NetResults, Scored, methods_of
from vggrepro.evaluation.predictions import StoredTest
from vggrepro.evaluation.stage import evaluate
from vggrepro.evaluation.verify import METHODS, SCALES, verify
from vggrepro.models.table1 import architecture_of, require_class_scores
from vggrepro.models.weights import read
from vggrepro.pipeline.net import Net
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.stage import errors_by_name
from vggrepro.pipeline.weights import checkpoint_of


@dataclass(frozen=True)
class EvaluatedNet:
    """Net whose posteriors are stored."""

    net: Net
    results: NetResults
    Q: tuple[int, ...]
    """Shorter sides at which it was tested, in pixels."""

    def test(self, method: str) -> StoredTest:
        """Returns the stored test by a method."""
        test = self.results.test(method, self.Q)
        assert test is not None, (self, method)
        return test

    def scored(self, method: str, Q: tuple[int, ...]) -> Scored:
        """Averages the stored posteriors over some Q. Raises UserError."""
        scored = self.results.scored(method, Q)
        assert scored is not None, (self, method, Q)
        return scored


def evaluate_nets(
    paths: list[Path], methods: Sequence[str], scales: tuple[int, ...] | None, overrides: Sequence[str] = ()
) -> list[EvaluatedNet] | None:
    """Evaluates nets, each a run directory or a checkpoint, by several methods; returns None except on rank 0.

    `scales` defaults to each configuration's Q of Table 3, or of Table 5 for multi-crop testing. Missing results are
    stored in the run directory, and the errors of a run's final net are logged. Raises UserError and Interrupted.
    """
    nets = [Net.at(path, _changes(overrides, scales)) for path in paths]
    for net in nets:
        if net.predicts_boxes:
            raise UserError(f"{net.path} predicts boxes, not classes; test it with `vggrepro localise {net.path}`")
        require_class_scores(architecture_of(net.stage))
    return _evaluate(nets, methods, scales)


def _changes(overrides: Sequence[str], scales: tuple[int, ...] | None) -> list[str]:
    return [*overrides, *([f"evaluation.single_Q={list(scales)}"] if scales else [])]


def _evaluate(nets: Sequence[Net], methods: Sequence[str], scales: tuple[int, ...] | None) -> list[EvaluatedNet] | None:
    evaluated: list[EvaluatedNet] = []
    with open_session([net.config for net in nets], training=False) as session:
        is_first = session.topology.is_first
        for net in nets:
            index = session.index(net.config)
            require_classes(net, index)
            multi_crop = any("multicrop" in methods_of(method) for method in methods)
            Q = scales or (net.config.multi_Q if multi_crop else net.config.single_Q)
            results = net.results(index.fingerprint)
            evaluated.append(EvaluatedNet(net, results, Q))
            if is_first:
                net.note_weights()
            if results.data != evaluated[0].results.data:
                raise UserError(f"{net.path} and {nets[0].path} see different images; give them the same data.index")
            evaluate(results, partial(net.opened, session), index, session.watch, [(method, Q) for method in methods])
            if not is_first:
                continue
            dataset = net.run.read_json("dataset.json")
            if dataset is None:  # an imported net
                dataset = index.summary() | {"opened_as": _location(net.config.data)}
                net.run.write_json("dataset.json", dataset)
            if net.is_as_trained and dataset["fingerprint"] == results.data:
                tests = [(part, Q) for method in methods for part in dict.fromkeys((*methods_of(method), method))]
                net.log(errors_by_name(net.stage, results, tests), session)
    return evaluated if session.topology.is_first else None


def _location(data: Data) -> dict[str, str]:
    """Returns the location of the images, independent of the working directory."""
    if data.index is not None:
        return {"index": str(data.index.resolve())}
    assert data.root is not None, "the images were opened"
    return {"root": data.root if data.root.startswith("builtin:") else str(Path(data.root).resolve())}


def require_classes(net: Net, index: Index) -> None:
    """Raises UserError if the classes of the index, or their order, are not those that the net was trained on."""
    provenance = net.load().provenance
    expected, expected_digest = provenance["classes"], provenance.get("classes_sha256")
    digest = hashlib.sha256("\n".join(index.classes).encode()).hexdigest()
    if expected not in (None, list(index.classes)) or expected_digest not in (None, digest):
        raise UserError(
            f"{index.source} has other classes than {net.path} was trained on; set data.root to the same classes, or "
            f"if some are missing, index it with --classes and a list of all"
        )


def verify_paper(
    files: Mapping[str, Path], index: Path, runs: Path, overrides: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Measures the rows of Tables 3-6 from the authors' weights by column of Table 1; returns None except on rank 0."""
    changes = _changes([f"data.index={json.dumps(str(index))}", *overrides], SCALES)
    nets, sources = [], {}
    for name, file in files.items():
        imported = read(file, net=name)
        checkpoint = checkpoint_of(imported, runs / name)
        nets.append(Net.of_checkpoint(file, checkpoint, checkpoint.stage, runs / name, changes))
        sources[name] = imported.source
    evaluated = _evaluate(nets, METHODS, SCALES)
    if evaluated is None:
        return None
    return {"weights": sources} | verify({name: net.scored for name, net in zip(files, evaluated, strict=True)})
