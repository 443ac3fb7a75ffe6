"""Publication of a finished net as a folder or a repository of the Hub, for timm, torch.hub and this program."""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vggrepro.config.recipes import load_resolved
from vggrepro.errors import UserError
from vggrepro.models.table1 import architecture_of, require_class_scores
from vggrepro.paper import ilsvrc_classes, value
from vggrepro.pipeline.weights import sha256_of, write_net
from vggrepro.reporting.documents.archive import ranks_by_test
from vggrepro.reporting.documents.card import as_made, function_of, model_card
from vggrepro.reporting.stored import evidence
from vggrepro.reporting.stored.predictions import PredictionCache
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.storage import checkpoint
from vggrepro.storage.checkpoint import Checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.hub import CARD, CONFIG, WEIGHTS, Publication, read_repository, repository_of, upload
from vggrepro.storage.ledger import read_ledger
from vggrepro.storage.status import locate

_LICENSE, _LEDGER = "LICENSE", "ledger.json"
_FILES = frozenset({WEIGHTS, CONFIG, CARD, _LICENSE, _LEDGER, evidence.RUNS, evidence.RANKS})
"""Files that a published net may have."""
_MARK = "vggrepro"
"""Key of `config.json` that identifies the net; timm and the Hub ignore it."""


@dataclass(frozen=True)
class Published:
    """Result of a publication, or of its dry run."""

    place: str
    """Folder, or URL at the Hub."""
    files: dict[str, int]
    """Sizes of the files in bytes, by name."""
    weights: str
    """SHA-256 (hex) of the net, see `checkpoint.weights_hash`."""
    timm: str | None
    """timm's name of the net; None if timm has no such net."""
    notes: tuple[str, ...]
    """Remarks for the user."""


@dataclass(frozen=True)
class _UnpublishedNet:
    """Finished net and the files that are published with it."""

    run: RunDirectory
    stored_net: Checkpoint
    weights: str
    others: Mapping[str, bytes]
    """Content by name of all files except the weights and the card."""

    @property
    def tested(self) -> bool:
        return evidence.RANKS in self.others

    def sizes(self, place: str) -> dict[str, int]:
        """Returns the sizes of the files in bytes, by name; the weights' without the file header."""
        weights = sum(tensor.nbytes for tensor in self.stored_net.weights.values())
        sizes = {name: len(data) for name, data in self.others.items()}
        return dict(sorted((sizes | {WEIGHTS: weights, CARD: len(self.card("0" * 64, place))}).items()))

    def card(self, sha256: str, place: str) -> bytes:
        """Renders the model card."""
        text = model_card(
            self.stored_net, self.weights, self.run, WEIGHTS, sha256, published=place, evidence=self.tested
        )
        return text.encode()

    def write(self, folder: Path, place: str) -> None:
        """Writes all files to a folder. Raises UserError and OSError."""
        need, free = sum(self.sizes(place).values()), shutil.disk_usage(folder).free
        if need > free:
            remedy = "set TMPDIR to another folder" if place.startswith("hf:") else "choose another folder"
            raise UserError(
                f"{folder.parent} has {free / 1e6:.0f} MB of free space, and the files need {need / 1e6:.0f} MB; "
                f"free some space, or {remedy}"
            )
        write_net(self.stored_net, folder / WEIGHTS)
        for name, data in self.others.items():
            (folder / name).write_bytes(data)
        (folder / CARD).write_bytes(self.card(sha256_of(folder / WEIGHTS), place))


def publish(run: Path, to: str, *, dry_run: bool = False, private: bool = False, replace: bool = False) -> Published:
    """Publishes the net of a finished run with its card, ledger, license and results (ranks of the true classes).

    A folder is written atomically. At the Hub, the files are one commit, and a repeated call resumes an interrupted
    upload. An edited card is not replaced, unless `replace` is true.

    Args:
        run: run directory.
        to: folder, or repository of the Hub (`hf:owner/name`), which is created if it does not exist.
        dry_run: list the files without writing them or contacting the Hub.
        private: whether a new repository is private.
        replace: replace a published net even if it is another one.

    Raises UserError, also if `to` has another net or other files.
    """
    repository = repository_of(to)
    if private and repository is None:
        raise UserError(f"--private with the folder {to}: only repositories of the Hub can be private; omit --private")
    net = _read(run)
    place = f"hf:{repository}" if repository else "FOLDER"
    notes = []
    timm = function_of(net.stored_net.stage.model)
    if timm is None:
        notes.append("timm has no such net: config.json names none, and timm.create_model cannot load it")
    if not net.tested:
        notes.append(f"no results are published: {run} is not tested; run `vggrepro evaluate {run}`")
    if dry_run:
        return Published(to, net.sizes(place), net.weights, timm, tuple(notes))
    existing = read_repository(repository, private=private) if repository else _read_folder(Path(to))
    edited = _keeps_card(net, existing, to, replace=replace)
    if edited:
        notes.append(f"its {CARD} was edited by hand and is unchanged; --replace overwrites it")
    if repository is None:
        files = _to_folder(net, Path(to), existing.card if edited else None)
        return Published(to, files, net.weights, timm, tuple(notes))
    try:
        with TemporaryDirectory(prefix="vggrepro-publish-") as name:
            net.write(Path(name), place)
            if edited:
                (Path(name) / CARD).unlink()
            sizes = _sizes_in(Path(name))
            new = {file: Path(name) / file for file in sizes}
            stale = sorted((existing.files & _FILES) - {CARD} - new.keys())
            message = f"{net.stored_net.stage.name}: weights {net.weights[:12]}"
            address = upload(repository, new, existing, private=private, removed=stale, message=message)
    except OSError as error:
        raise UserError(f"the files for {to} cannot be written: {error}; free some space, or set TMPDIR") from None
    return Published(address, sizes, net.weights, timm, tuple(notes))


def _read(run: Path) -> _UnpublishedNet:
    if run.is_file():
        raise UserError(f"{run} is a file; name the run directory of a finished stage, e.g. runs/demo/D")
    file, _ = locate(run)
    stored_net = checkpoint.load(file)
    if stored_net.stage.localisation:
        raise UserError(f"{run} predicts boxes, not classes; name the net it was trained from, its run.parent")
    require_class_scores(architecture_of(stored_net.stage))
    directory, weights = RunDirectory(run), checkpoint.weights_hash(stored_net.weights)
    stored = StoredRun(run, load_resolved(run / "config.yaml"))
    if stored.weights not in (None, weights):
        raise UserError(f"{run / 'final.json'} belongs to another net than {file}; restore one of them")
    others = {CONFIG: _json(_config(stored_net, weights)), _LICENSE: _license()}
    departures = read_ledger(directory)
    if departures is not None:
        others[_LEDGER] = _json([asdict(departure) for departure in departures])
    if stored.weights and stored.dataset:
        results = ranks_by_test([stored], PredictionCache())
        others |= evidence.contents([stored], results) if results else {}
    return _UnpublishedNet(directory, stored_net, weights, others)


def _json(tree: Any) -> bytes:
    return f"{json.dumps(tree, indent=2)}\n".encode()


def _config(stored_net: Checkpoint, weights: str) -> dict[str, Any]:
    """Makes the `config.json` of timm and the Hub; `crop_pct` gives the size before the crop."""
    model, preprocessing = stored_net.stage.model, stored_net.preprocessing
    classes = stored_net.provenance["classes"]
    if classes is None and model.classes == value("classes"):  # imported nets for ILSVRC
        classes = ilsvrc_classes()
    function = function_of(model)
    config: dict[str, Any] = {"architecture": function} if function else {}
    config["num_classes"] = model.classes
    if classes is not None:
        config["label_names"] = list(classes)
    config["pretrained_cfg"] = {
        "custom_load": False,
        "input_size": [3, model.crop, model.crop],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": _crop_fraction(model.crop, stored_net.stage.single_Q[0]),
        "crop_mode": "center",
        "mean": [part / 255 for part in preprocessing["mean"]],  # grey levels in [0, 1]
        "std": [part / 255 for part in preprocessing["std"]],
        "num_classes": model.classes,
    }
    if function:
        config["pretrained_cfg"] |= {"pool_size": [7, 7], "first_conv": "features.0", "classifier": "head.fc"}
    config[_MARK] = {"net": model.net, "weights": weights}
    return config


def _crop_fraction(crop: int, Q: int) -> float:
    """Computes timm's crop_pct, so that the shorter side floor(crop / crop_pct) is Q, in pixels."""
    fraction = crop / Q
    while math.floor(crop / fraction) < Q:
        fraction = math.nextafter(fraction, 0)
    return fraction


def _license() -> bytes:
    """Reads the license of the installed package or the checkout. Raises UserError if it is missing."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("vggrepro") or ():
            if file.name == _LICENSE and Path(str(file.locate())).is_file():
                return file.read_binary()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists() and (checkout / _LICENSE).exists():
        return (checkout / _LICENSE).read_bytes()
    raise UserError(f"{_LICENSE} is missing from the installed package; install it again: `pip install vggrepro`")


def _read_folder(folder: Path) -> Publication:
    """Reads the content of a folder. Raises UserError if it has files that are not of a published net."""
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"--to {folder} is a file; name a folder, or hf:owner/name")
        return Publication()
    files = frozenset(file.name for file in folder.iterdir())
    if others := sorted(files - _FILES):
        raise UserError(f"--to {folder} has other files ({others[0]}); choose a new folder")
    config, card = ((folder / name).read_bytes() if name in files else None for name in (CONFIG, CARD))
    return Publication(files, config, card)


def _keeps_card(net: _UnpublishedNet, existing: Publication, to: str, *, replace: bool) -> bool:
    """Whether an edited card must not be replaced. Raises UserError if other content would be lost."""
    if replace:
        return False
    if existing.files & _FILES - {CARD, _LICENSE}:  # a new repository may have these two
        published = None
        with suppress(ValueError, KeyError, TypeError):
            published = json.loads(existing.config or b"")[_MARK]["weights"]
        if published != net.weights:
            which = f"weights {published[:12]}" if isinstance(published, str) else f"without a {CONFIG} of vggrepro"
            raise UserError(
                f"--to {to} has another net ({which}; this one has {net.weights[:12]}); "
                f"choose another place, or --replace it"
            )
        if evidence.RANKS in existing.files and not net.tested:
            raise UserError(
                f"--to {to} has results of this net, which {net.run.path} lacks and which would be lost; "
                f"evaluate it first, or --replace them"
            )
    return bool(existing.card and not as_made(existing.card.decode(errors="replace")))


def _to_folder(net: _UnpublishedNet, folder: Path, card: bytes | None) -> dict[str, int]:
    """Replaces a folder atomically; returns the sizes of its files. Raises UserError."""
    folder = folder.resolve()
    new, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.{part}") for part in ("new", "old"))
    try:
        new.mkdir(parents=True)
        net.write(new, "FOLDER")
        if card is not None:
            (new / CARD).write_bytes(card)
        sizes = _sizes_in(new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    except OSError as error:
        raise UserError(f"--to {folder} cannot be written: {error.strerror}; choose another folder") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return sizes


def _sizes_in(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
