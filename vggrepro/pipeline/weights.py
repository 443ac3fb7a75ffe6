"""Import of other programs' weight files as run directories, and export of nets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vggrepro.config.parsing import override
from vggrepro.config.settings import Config, Data, Model
from vggrepro.errors import UserError
from vggrepro.evaluation.feature_spec import scales_at
from vggrepro.models.table1 import architecture
from vggrepro.models.weights import ILSVRC_CLASSES_SHA256, Imported, Preprocessing, read, write
from vggrepro.paper import value
from vggrepro.reporting.documents.card import model_card, place_of
from vggrepro.storage import checkpoint
from vggrepro.storage.checkpoint import Checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.environment import environment
from vggrepro.storage.hub import weight_file
from vggrepro.storage.ledger import Departure, ledger, write_ledger
from vggrepro.storage.status import final_file, locate, note_weights


def import_weights(
    file: Path, run: Path, *, net: str | None = None, preprocessing: Preprocessing | None = None, key: str | None = None
) -> dict[str, Any]:
    """Makes a run directory from a weight file, or from a published net: a folder or `hf:owner/name`.

    Returns net, blocks, classes, crop, width, parameters, source, sha256, preprocessing, weights (the net's hash) and
    run. Raises UserError, also if the run directory already has a net.
    """
    final = final_file(run)
    if final.exists():
        raise UserError(f"--out {run} already has a net ({final}); choose another directory, or remove it")
    imported = read(weight_file(file), net=net, preprocessing=preprocessing, key=key)
    stored = checkpoint_of(imported, run)
    weights = checkpoint.weights_hash(imported.weights)
    directory = RunDirectory(run)
    directory.write_text("config.yaml", stored.stage.to_yaml())
    note_weights(directory, weights, 0)
    why = "imported: how it was trained is not known here"
    departures = [Departure("weights", "trained by this recipe", imported.source, why)]
    departures += [line for line in ledger(stored.stage, None) if line.setting.startswith(("model.", "evaluation."))]
    write_ledger(directory, departures)
    checkpoint.save(stored, final)
    model = imported.model
    return {
        **{key: model[key] for key in ("net", "blocks", "classes", "crop", "width") if model.get(key)},
        "parameters": architecture(**model).parameters,
        "source": imported.source,
        "sha256": imported.sha256,
        "preprocessing": imported.preprocessing,
        "weights": weights,
        "run": str(run),
    }


def checkpoint_of(imported: Imported, run: Path) -> Checkpoint:
    """Converts imported weights to the final checkpoint of a run."""
    # The authors' nets were trained with scale jitter, so they are tested at 384, or at 256, 384 and 512.
    jittered = imported.source.startswith(("Caffe", "MatConvNet"))
    (S,) = scales_at(imported.model["crop"], value("scales")[:1])
    data = Data(mean=imported.preprocessing["mean"], S=value("jitter") if jittered else S)
    path = run.resolve()
    location = {"root": path.parent.parent, "experiment": path.parent.name, "name": path.name}
    changes = [f"run.{key}={json.dumps(str(text))}" for key, text in location.items()]
    for key, setting in (imported.testing or {}).items():
        changes.append(f"{'data' if key == 'S' else 'evaluation'}.{key}={json.dumps(setting)}")
    config = override(Config(model=Model(**imported.model), data=data), changes, run)
    ilsvrc = imported.classes is None and imported.model["classes"] == value("classes")
    provenance = {
        "data": None,
        "classes": imported.classes,
        "classes_sha256": ILSVRC_CLASSES_SHA256 if ilsvrc else None,
        "versions": environment(),
        "parent": None,
        "imported": {"source": imported.source, "sha256": imported.sha256, "testing": imported.testing},
    }
    return Checkpoint(config.model_dump(mode="json"), 0, imported.weights, imported.preprocessing, provenance)


def export_weights(net: Path, out: Path, *, dense: bool = False) -> list[Path]:
    """Writes a net as .safetensors with a model card, .pth or .onnx; with `dense` for uncropped images. See `write`."""
    file, run = locate(net)
    stored = checkpoint.load(file)
    if stored.stage.localisation:
        raise UserError(f"{net} predicts boxes, which other programs do not support; name a net that predicts classes")
    card = place_of(out) if out.suffix == ".safetensors" else None
    write_net(stored, out, dense=dense)
    if card is None:
        return [out]
    text = model_card(stored, checkpoint.weights_hash(stored.weights), RunDirectory(run), out.name, sha256_of(out))
    RunDirectory(card.parent).write_text(card.name, text)
    return [out, card]


def write_net(stored: Checkpoint, out: Path, *, dense: bool = False) -> None:
    """Writes the net of a checkpoint as .safetensors, .pth or .onnx atomically. Raises UserError."""
    # Without `blocks` for all five blocks, versions before `model.blocks` can read the file.
    omitted = ("init",) if stored.stage.model.blocks else ("init", "blocks")
    write(
        out,
        stored.weights,
        model={key: setting for key, setting in stored.config["model"].items() if key not in omitted},
        preprocessing=stored.preprocessing,
        classes=stored.provenance["classes"],
        testing=_testing(stored),
        dense=dense,
    )


def sha256_of(file: Path) -> str:
    """Computes the SHA-256 of a file (hex)."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _testing(stored: Checkpoint) -> dict[str, Any] | None:
    """Returns the paper's test settings for a net (Sections 4.1 and 4.2), or None if its training is unknown."""
    if imported := stored.provenance.get("imported"):
        return imported.get("testing")
    stage = stored.stage
    Q = {"single_Q": list(stage.single_Q), "multi_Q": list(stage.multi_Q)}
    return {"S": stored.config["data"]["S"]} | Q | {"flip": stage.evaluation.flip}
