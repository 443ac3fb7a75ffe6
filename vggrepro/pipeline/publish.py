"""A finished net as a folder, or a repository of the Hub, that timm, torch.hub and this program load again."""

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
"""All that a published net may consist of."""
_MARK = "vggrepro"
"""The key of `config.json` that tells which net it is of; timm and the Hub pass over it."""


@dataclass(frozen=True)
class Published:
    """What was published, or would be."""

    place: str
    """The folder, or the address at the Hub."""
    files: dict[str, int]
    """Bytes by name."""
    weights: str
    """SHA-256 (hex) of the net, whatever file it is in."""
    timm: str | None
    """timm's name of the net; None where it has none."""
    notes: tuple[str, ...]
    """What a reader should know."""


@dataclass(frozen=True)
class _Net:
    """A finished net and what is published beside it."""

    run: RunDirectory
    stored_net: Checkpoint
    weights: str
    others: Mapping[str, bytes]
    """Content by name of all files but the weights and the card."""

    @property
    def tested(self) -> bool:
        return evidence.RANKS in self.others

    def sizes(self, place: str) -> dict[str, int]:
        """Bytes by name, of the weights without the file's header."""
        weights = sum(tensor.nbytes for tensor in self.stored_net.weights.values())
        sizes = {name: len(data) for name, data in self.others.items()}
        return dict(sorted((sizes | {WEIGHTS: weights, CARD: len(self.card("0" * 64, place))}).items()))

    def card(self, sha256: str, place: str) -> bytes:
        """The model card."""
        made = model_card(
            self.stored_net, self.weights, self.run, WEIGHTS, sha256, published=place, evidence=self.tested
        )
        return made.encode()

    def write(self, folder: Path, place: str) -> None:
        """Writes all files into a folder. Raises UserError, OSError."""
        need, free = sum(self.sizes(place).values()), shutil.disk_usage(folder).free
        if need > free:
            remedy = "set TMPDIR to another place" if place.startswith("hf:") else "choose another place"
            raise UserError(
                f"{folder.parent} has room for {free / 1e6:.0f} MB, and the files take {need / 1e6:.0f} MB; "
                f"make room, or {remedy}"
            )
        write_net(self.stored_net, folder / WEIGHTS)
        for name, data in self.others.items():
            (folder / name).write_bytes(data)
        (folder / CARD).write_bytes(self.card(sha256_of(folder / WEIGHTS), place))


def publish(run: Path, to: str, *, dry_run: bool = False, private: bool = False, replace: bool = False) -> Published:
    """Publishes the net of a finished run with its card, ledger, license and answers (ranks of the true classes).

    A folder is there with all files or not at all; at the Hub they are one commit, and what an interrupted upload has
    sent is not sent again. A card that was edited there stays, unless `replace` is true.

    Args:
        run: the run directory.
        to: a folder, or `hf:owner/name`, a repository of the Hub, which is made where there is none.
        dry_run: find out what would be written, and neither write nor contact anything.
        private: only its owner may read a new repository.
        replace: what is published there may be of another net.

    Raises:
        UserError: the run is not finished or predicts boxes; the place holds another net, or files of others; it cannot
            be written; the Hub cannot be reached, or refuses.
    """
    repository = repository_of(to)
    if private and repository is None:
        raise UserError(f"--private with the folder {to}: only a repository of the Hub is private; leave it out")
    net = _read(run)
    place = f"hf:{repository}" if repository else "FOLDER"
    notes = []
    timm = function_of(net.stored_net.stage.model)
    if timm is None:
        notes.append("timm has no such net: config.json names none, and timm.create_model does not load it")
    if not net.tested:
        notes.append(f"no answers are published: {run} is not tested; `vggrepro evaluate {run}` tests it")
    if dry_run:
        return Published(to, net.sizes(place), net.weights, timm, tuple(notes))
    existing = read_repository(repository, private=private) if repository else _read_folder(Path(to))
    edited = _settle(net, existing, to, replace=replace)
    if edited:
        notes.append(f"its {CARD} there was edited by hand and stays as it is; --replace renews it")
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
        raise UserError(f"the files for {to} cannot be written: {error}; make room, or set TMPDIR") from None
    return Published(address, sizes, net.weights, timm, tuple(notes))


def _read(run: Path) -> _Net:
    """The net of a run directory. Raises UserError."""
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
        raise UserError(f"{run / 'final.json'} is of another net than {file}; restore the one or the other")
    others = {CONFIG: _json(_config(stored_net, weights)), _LICENSE: _license()}
    departures = read_ledger(directory)
    if departures is not None:
        others[_LEDGER] = _json([asdict(departure) for departure in departures])
    if stored.weights and stored.dataset:
        results = ranks_by_test([stored], PredictionCache())
        others |= evidence.contents([stored], results) if results else {}
    return _Net(directory, stored_net, weights, others)


def _json(tree: Any) -> bytes:
    return f"{json.dumps(tree, indent=2)}\n".encode()


def _config(stored_net: Checkpoint, weights: str) -> dict[str, Any]:
    """timm's `config.json`: the net, its input, and the names of its classes; for the Hub, and to know the net by.

    timm's units are [0, 1], and its size before the crop is crop_pct's. Where it has no such net it names none.
    """
    model, preprocessing = stored_net.stage.model, stored_net.preprocessing
    classes = stored_net.provenance["classes"]
    if classes is None and model.classes == value("classes"):  # the only such nets that are published
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
        "crop_pct": _crop_share(model.crop, stored_net.stage.single_Q[0]),
        "crop_mode": "center",
        "mean": [part / 255 for part in preprocessing["mean"]],
        "std": [part / 255 for part in preprocessing["std"]],
        "num_classes": model.classes,
    }
    if function:
        config["pretrained_cfg"] |= {"pool_size": [7, 7], "first_conv": "features.0", "classifier": "head.fc"}
    config[_MARK] = {"net": model.net, "weights": weights}
    return config


def _crop_share(crop: int, Q: int) -> float:
    """timm's crop_pct, with which it rescales to the shorter side Q, px: floor(crop / crop_pct)."""
    share = crop / Q
    while math.floor(crop / share) < Q:
        share = math.nextafter(share, 0)
    return share


def _license() -> bytes:
    """The license of this program, as it is installed or in its checkout. Raises UserError where there is none."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("vggrepro") or ():
            if file.name == _LICENSE and Path(str(file.locate())).is_file():
                return file.read_binary()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists() and (checkout / _LICENSE).exists():
        return (checkout / _LICENSE).read_bytes()
    raise UserError(f"{_LICENSE} is missing from the installed package; install it again: `pip install vggrepro`")


def _read_folder(folder: Path) -> Publication:
    """What a folder holds. Raises UserError for one that holds anything else than a published net."""
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"--to {folder} is a file; name a folder, or hf:owner/name")
        return Publication()
    files = frozenset(file.name for file in folder.iterdir())
    if others := sorted(files - _FILES):
        raise UserError(f"--to {folder} holds other files ({others[0]}); choose a new folder")
    config, card = ((folder / name).read_bytes() if name in files else None for name in (CONFIG, CARD))
    return Publication(files, config, card)


def _settle(net: _Net, existing: Publication, to: str, *, replace: bool) -> bool:
    """Whether a card that was edited is to stay. Raises UserError where something there would be lost."""
    if replace or not existing.files & _FILES - {CARD, _LICENSE}:  # which a new repository may have
        return bool(existing.card and not replace and not as_made(existing.card.decode(errors="replace")))
    there = None
    with suppress(ValueError, KeyError, TypeError):
        there = json.loads(existing.config or b"")[_MARK]["weights"]
    if there != net.weights:
        which = f"weights {there[:12]}" if isinstance(there, str) else f"of no {CONFIG} that was made here"
        raise UserError(
            f"--to {to} holds another net ({which}; this one has {net.weights[:12]}); "
            f"choose another place, or --replace it"
        )
    if evidence.RANKS in existing.files and not net.tested:
        raise UserError(
            f"--to {to} holds the answers of this net, which {net.run.path} lacks: they would be lost; "
            f"evaluate it first, or --replace them"
        )
    return existing.card is not None and not as_made(existing.card.decode(errors="replace"))


def _to_folder(net: _Net, folder: Path, card: bytes | None) -> dict[str, int]:
    """Writes all files beside a folder and then puts them in its place; returns their sizes. Raises UserError."""
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
        raise UserError(f"--to {folder} cannot be written: {error.strerror}; choose another place") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return sizes


def _sizes_in(folder: Path) -> dict[str, int]:
    """Bytes by name."""
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
