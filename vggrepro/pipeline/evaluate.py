"""Nets tested by name, and the authors' own against the paper."""

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
    """A net whose posteriors are stored."""

    net: Net
    results: NetResults
    Q: tuple[int, ...]
    """At which it was tested, px."""

    def test(self, method: str) -> StoredTest:
        """The stored posteriors of a method that it was tested by."""
        found = self.results.test(method, self.Q)
        assert found is not None, (self, method)
        return found

    def scored(self, method: str, Q: tuple[int, ...]) -> Scored:
        """Posteriors averaged over some of the Q at which it was tested. Raises UserError."""
        found = self.results.scored(method, Q)
        assert found is not None, (self, method, Q)
        return found


def evaluate_nets(
    paths: list[Path], methods: Sequence[str], scales: tuple[int, ...] | None, overrides: Sequence[str] = ()
) -> list[EvaluatedNet] | None:
    """Evaluates nets, each a run directory or a checkpoint, by several methods; None on all ranks but the first.

    Each is tested at every Q of `scales`, or where that is None at its own configuration's: that of Table 3, and for
    multi-crop testing those of Table 5. What is not stored yet is computed with the preprocessing that the net's
    weights were made for, and stored in its run directory; the errors of a run's final net are logged with its other
    metrics. Raises UserError and Interrupted.
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
            several = any("multicrop" in methods_of(method) for method in methods)
            Q = scales or (net.config.multi_Q if several else net.config.single_Q)
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
            if dataset is None:  # imported: trained on nothing known
                dataset = index.summary() | {"opened_as": _place(net.config.data)}
                net.run.write_json("dataset.json", dataset)
            if net.is_as_trained and dataset["fingerprint"] == results.data:
                tests = [(part, Q) for method in methods for part in dict.fromkeys((*methods_of(method), method))]
                net.log(errors_by_name(net.stage, results, tests), session)
    return evaluated if session.topology.is_first else None


def _place(data: Data) -> dict[str, str]:
    """Where the images were found, so that they are found again from any working directory."""
    if data.index is not None:
        return {"index": str(data.index.resolve())}
    assert data.root is not None, "the images were opened"
    return {"root": data.root if data.root.startswith("builtin:") else str(Path(data.root).resolve())}


def require_classes(net: Net, index: Index) -> None:
    """Raises UserError when the index has other classes, or another order of them, than the net was trained on."""
    provenance = net.load().provenance
    known, digest = provenance["classes"], provenance.get("classes_sha256")
    own = hashlib.sha256("\n".join(index.classes).encode()).hexdigest()
    if (known is not None and list(index.classes) != known) or (digest is not None and digest != own):
        raise UserError(
            f"{index.source} has other classes than {net.path} was trained on; set data.root to the same ones, or, "
            f"where it has some of them only, index it with --classes and a list of all"
        )


def verify_paper(
    files: Mapping[str, Path], index: Path, runs: Path, overrides: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The rows of Tables 3-6 that the authors' nets determine, measured; None on all ranks but the first.

    `files` are the authors' weights by column of Table 1. Posteriors are kept under `runs`, so that an interrupted
    verification goes on where it was. Raises UserError and Interrupted.
    """
    changes = _changes([f"data.index={json.dumps(str(index))}", *overrides], SCALES)
    nets, sources = [], {}
    for name, file in files.items():
        imported = read(file, net=name)
        checkpoint = checkpoint_of(imported, runs / name)
        nets.append(Net.of_checkpoint(file, checkpoint, checkpoint.stage, runs / name, changes))
        sources[name] = imported.source
    found = _evaluate(nets, METHODS, SCALES)
    if found is None:
        return None
    return {"weights": sources} | verify({name: net.scored for name, net in zip(files, found, strict=True)})
