"""Other programs' weight files as run directories, and nets written for other programs."""

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
    """Makes a run directory of a weight file of another program, as if its net had just been trained.

    The file may be a published net: a folder of `vggrepro publish`, or `hf:owner/name`.

    Returns what was found: net, classes, crop, width, parameters, source, sha256, preprocessing, weights (the net's
    hash), run. Raises UserError, also when the run directory holds a net already.
    """
    final = final_file(run)
    if final.exists():
        raise UserError(f"--out {run} holds a net already ({final}); choose another directory, or remove it")
    found = read(weight_file(file), net=net, preprocessing=preprocessing, key=key)
    kept = checkpoint_of(found, run)
    weights = checkpoint.weights_hash(found.weights)
    directory = RunDirectory(run)
    directory.write_text("config.yaml", kept.stage.to_yaml())
    note_weights(directory, weights, 0)
    why = "imported: how it was trained is not known here"
    departures = [Departure("weights", "trained by this recipe", found.source, why)]
    departures += [one for one in ledger(kept.stage, None) if one.setting.startswith(("model.", "evaluation."))]
    write_ledger(directory, departures)
    checkpoint.save(kept, final)
    return {
        **{key: found.model[key] for key in ("net", "blocks", "classes", "crop", "width") if found.model.get(key)},
        "parameters": architecture(**found.model).parameters,
        "source": found.source,
        "sha256": found.sha256,
        "preprocessing": found.preprocessing,
        "weights": weights,
        "run": str(run),
    }


def checkpoint_of(found: Imported, run: Path) -> Checkpoint:
    """Imported weights as the final checkpoint of a run."""
    authors = found.source.startswith(("Caffe", "MatConvNet"))
    # the authors' nets were trained with scale jitter, so they are tested at 384 or at 256, 384 and 512
    (S,) = scales_at(found.model["crop"], value("scales")[:1])
    data = Data(mean=found.preprocessing["mean"], S=value("jitter") if authors else S)
    place = {"root": run.resolve().parent.parent, "experiment": run.resolve().parent.name, "name": run.resolve().name}
    changes = [f"run.{key}={json.dumps(str(text))}" for key, text in place.items()]
    for key, setting in (found.testing or {}).items():
        changes.append(f"{'data' if key == 'S' else 'evaluation'}.{key}={json.dumps(setting)}")
    config = override(Config(model=Model(**found.model), data=data), changes, run)
    ilsvrc = found.classes is None and found.model["classes"] == value("classes")
    provenance = {
        "data": None,
        "classes": found.classes,
        "classes_sha256": ILSVRC_CLASSES_SHA256 if ilsvrc else None,
        "versions": environment(),
        "parent": None,
        "imported": {"source": found.source, "sha256": found.sha256, "testing": found.testing},
    }
    return Checkpoint(config.model_dump(mode="json"), 0, found.weights, found.preprocessing, provenance)


def export_weights(net: Path, out: Path, *, dense: bool = False) -> list[Path]:
    """Writes the net of a run directory or checkpoint as .safetensors, .pth or .onnx; `dense`: ONNX for whole images.

    Beside .safetensors a model card. Returns the files written. Raises UserError, also where a card that was edited
    would be lost.
    """
    file, run = locate(net)
    kept = checkpoint.load(file)
    if kept.stage.localisation:
        raise UserError(f"{net} predicts boxes, which no other program's nets do; name a net that predicts classes")
    card = place_of(out) if out.suffix == ".safetensors" else None
    write_net(kept, out, dense=dense)
    if card is None:
        return [out]
    text = model_card(kept, checkpoint.weights_hash(kept.weights), RunDirectory(run), out.name, sha256_of(out))
    RunDirectory(card.parent).write_text(card.name, text)
    return [out, card]


def write_net(kept: Checkpoint, out: Path, *, dense: bool = False) -> None:
    """Writes the net of a checkpoint as .safetensors, .pth or .onnx, all or nothing. Raises UserError."""
    # all five blocks go without saying: versions before `model.blocks` read the file, too
    left_out = ("init",) if kept.stage.model.blocks else ("init", "blocks")
    write(
        out,
        kept.weights,
        model={key: setting for key, setting in kept.config["model"].items() if key not in left_out},
        preprocessing=kept.preprocessing,
        classes=kept.provenance["classes"],
        testing=_testing(kept),
        dense=dense,
    )


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _testing(kept: Checkpoint) -> dict[str, Any] | None:
    """How the paper would test a net, from how it was trained (Sections 4.1, 4.2); None where that is not known."""
    if imported := kept.provenance.get("imported"):
        return imported.get("testing")
    stage = kept.stage
    Q = {"single_Q": list(stage.single_Q), "multi_Q": list(stage.multi_Q)}
    return {"S": kept.config["data"]["S"]} | Q | {"flip": stage.evaluation.flip}
