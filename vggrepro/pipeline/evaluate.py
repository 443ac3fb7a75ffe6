"""Nets tested as they are asked for, and the authors' own against the paper."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggrepro.config.parsing import override
from vggrepro.config.settings import Config, Data, Evaluation
from vggrepro.errors import UserError
from vggrepro.evaluation.measure import Scored, methods_of, scored
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.stage import error_record
from vggrepro.pipeline.tracking import mirrored
from vggrepro.pipeline.weights import checkpoint_of
from vggrepro.ranks.topology import Topology
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import known_weights, locate, note_weights, relocated, stage_at

if TYPE_CHECKING:
    from vggrepro.data.index import Index
    from vggrepro.storage.checkpoint import Checkpoint


@dataclass(frozen=True)
class EvaluatedNet:
    """A net whose posteriors are in the store."""

    path: Path
    """Its run directory, or the checkpoint."""
    config: Config
    weights: str
    """Hash of the net."""
    data: str
    """Fingerprint of the index."""
    folder: Path
    """Of the posteriors."""
    Q: tuple[int, ...]
    """At which it was tested, px."""

    def scored(self, method: str, Q: tuple[int, ...] | None = None) -> Scored:
        """The posteriors averaged over Q, by default all at which it was tested. Raises UserError."""
        found = scored(self.config, self.weights, self.data, self.folder, Q or self.Q, method)
        assert found is not None, (self, method, Q)
        return found


def evaluate_nets(
    nets: list[Path], methods: Sequence[str], scales: tuple[int, ...] | None, overrides: Sequence[str] = ()
) -> list[EvaluatedNet] | None:
    """Evaluates nets, each a run directory or a checkpoint, by several methods; None on all ranks but the first.

    Each is tested at every Q of `scales`, or where that is None at its own configuration's: that of Table 3, and for
    multi-crop testing those of Table 5. What is not stored yet is computed with the preprocessing that the net's
    weights were made for, and kept in its run directory; the errors of a run's final net are logged with its other
    metrics. Raises UserError and Interrupted.
    """
    from vggrepro.models.table1 import architecture_of, require_class_scores
    from vggrepro.storage import checkpoint

    places = [locate(net) for net in nets]
    kept = [(net, checkpoint.load(file), RunDirectory(run)) for net, (file, run) in zip(nets, places, strict=True)]
    for net, found, _ in kept:
        if found.stage.localisation:
            raise UserError(f"{net} predicts boxes, not classes; test it with `vggrepro localise {net}`")
        require_class_scores(architecture_of(found.stage))
    return _evaluate(kept, methods, scales, overrides)


def _evaluate(
    nets: list[tuple[Path, Checkpoint, RunDirectory]],
    methods: Sequence[str],
    scales: tuple[int, ...] | None,
    overrides: Sequence[str],
) -> list[EvaluatedNet] | None:
    from vggrepro.evaluation.stage import as_the_net_expects, evaluate
    from vggrepro.storage.checkpoint import weights_hash
    from vggrepro.training.stage import net_of

    changes = [*overrides, *([f"evaluation.single_Q={list(scales)}"] if scales else [])]
    stages = [stage_at(run.path) if path.is_dir() else kept.stage for path, kept, run in nets]
    configs = [override(stage, changes, path) for stage, (path, _, _) in zip(stages, nets, strict=True)]
    result: list[EvaluatedNet] = []
    with open_session(configs, training=False) as session:
        for (path, kept, run), stage, config in zip(nets, stages, configs, strict=True):
            index = session.index(config)
            _require_classes(kept, index, path)
            weights = weights_hash(kept.weights)
            several = any("multicrop" in methods_of(method) for method in methods)
            Q = scales or (config.multi_Q if several else config.single_Q)
            result.append(EvaluatedNet(path, config, weights, index.fingerprint, run.posteriors, Q))
            if path.is_dir() and session.topology.is_first and known_weights(run) is None:
                note_weights(run, weights, kept.step)
            if result[-1].data != result[0].data:
                raise UserError(f"{path} and {nets[0][0]} see different images; give them the same data.index")
            loader = as_the_net_expects(session.loader(config), kept.preprocessing)
            make_net = partial(net_of, kept, session.device)
            evaluate(config, weights, make_net, index, loader, run, session.watch, dict.fromkeys(methods, Q))
            if not session.topology.is_first:
                continue
            if run.read_json("dataset.json") is None:  # imported: trained on nothing known
                run.write_json("dataset.json", index.summary() | {"opened_as": _place(config.data)})
            _log_errors(result[-1], methods, run, stage.evaluation, session.topology)
    return result if session.topology.is_first else None


def _place(data: Data) -> dict[str, str]:
    """Where the images were found, so that they are found again from any working directory."""
    if data.index is not None:
        return {"index": str(data.index.resolve())}
    assert data.root is not None, "the images were opened"
    return {"root": data.root if data.root.startswith("builtin:") else str(Path(data.root).resolve())}


def _log_errors(
    net: EvaluatedNet, methods: Sequence[str], run: RunDirectory, own: Evaluation, topology: Topology
) -> None:
    """Adds the errors of a run's final net to its metrics, unless its images or its protocol are not its own."""
    data = run.read_json("dataset.json")
    if not data or (known_weights(run), data["fingerprint"]) != (net.weights, net.data):
        return
    if (net.config.evaluation.flip, net.config.evaluation.precision) != (own.flip, own.precision):
        return
    asked = [(one, net.Q) for method in methods for one in dict.fromkeys((*methods_of(method), method))]
    trained = net.config.model_copy(update={"evaluation": own})
    if record := error_record(trained, net.weights, net.data, run, asked):
        with mirrored(relocated(trained, run.path), run, topology):
            run.append(record)


def _require_classes(net: Checkpoint, index: Index, file: Path) -> None:
    """Raises UserError when the index has other classes, or another order of them, than the net was trained on."""
    known, digest = net.provenance["classes"], net.provenance.get("classes_sha256")
    own = hashlib.sha256("\n".join(index.classes).encode()).hexdigest()
    if (known is not None and list(index.classes) != known) or (digest is not None and digest != own):
        raise UserError(
            f"{index.source} has other classes than {file} was trained on; set data.root to the same ones, or, where "
            f"it has some of them only, index it with --classes and a list of all"
        )


def verify_paper(
    files: Mapping[str, Path], index: Path, runs: Path, overrides: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The rows of Tables 3-6 that the authors' nets determine, measured; None on all ranks but the first.

    `files` are the authors' weights by column of Table 1. Posteriors are kept under `runs`, so that an interrupted
    verification goes on where it was. Raises UserError and Interrupted.
    """
    from vggrepro.evaluation.verify import METHODS, SCALES, verify
    from vggrepro.models.weights import read

    nets, sources = [], {}
    for net, file in files.items():
        run, imported = RunDirectory(runs / net), read(file, net=net)
        nets.append((file, checkpoint_of(imported, run.path), run))
        sources[net] = imported.source
    found = _evaluate(nets, METHODS, SCALES, [f"data.index={json.dumps(str(index))}", *overrides])
    if found is None:
        return None
    return {"weights": sources} | verify({net: one.scored for net, one in zip(files, found, strict=True)})
