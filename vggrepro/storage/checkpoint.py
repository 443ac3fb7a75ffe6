"""Checkpoints: a net's weights, preprocessing and provenance, with momentum and schedule to resume training.

A checkpoint contains only plain types and tensors and is loaded with `weights_only=True`, which never executes code.
It is written to a temporary file, flushed to disk and renamed, so that a file with its final name is complete.
"""

import hashlib
import logging
import os
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vggrepro.config.settings import Config
from vggrepro.errors import UserError, reason_of
from vggrepro.files import replacing
from vggrepro.models.torch_file import read_torch

_FORMAT = "vggrepro checkpoint 1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file."""

    config: dict[str, Any]
    """Complete configuration of the stage."""
    step: int
    """Iterations done."""
    weights: dict[str, torch.Tensor]
    """State dict of the net, on the CPU."""
    preprocessing: dict[str, Any]
    """Input of the net: order and range of the channels, and the mean that is subtracted."""
    provenance: dict[str, Any]
    """Fingerprint and classes of the data set, the parent's weights hash and layer map, and versions."""
    training: dict[str, Any] = field(default_factory=dict)
    """Momentum and state of training; empty in the final checkpoint of a finished stage."""

    @property
    def stage(self) -> Config:
        """Typed configuration of the stage."""
        return Config.model_validate(self.config)


def weights_hash(weights: dict[str, torch.Tensor]) -> str:
    """Computes the SHA-256 (hex) of names, shapes and values, which identifies a net independently of its file."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint atomically. Raises OSError, e.g. if the disk is full; an existing file is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({"format": _FORMAT} | vars(checkpoint), file)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError, without the reason, if the disk is full
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(f"checkpoint {path} cannot be written, {free:.0f} MiB are free there: {error}") from error


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of this program, complete or not, rather than another program's weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            return _FORMAT.encode() in archive.read(record)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint to the CPU. Raises UserError if it is missing, damaged, or not of this program."""
    try:
        content = read_torch(path)
    except FileNotFoundError:
        raise UserError(
            f"checkpoint {path} does not exist; name the run directory of a finished stage, or one of its checkpoints"
        ) from None
    except Exception as error:
        reason = reason_of(error, 120)
        raise UserError(f"checkpoint {path} is damaged or not a checkpoint ({reason}); use another one") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{path} is not a checkpoint of this program; use a checkpoint of a run directory")
    return Checkpoint(**{key: content[key] for key in Checkpoint.__dataclass_fields__})


def step_file(folder: Path, step: int) -> Path:
    """Returns the file of the checkpoint of a step."""
    return folder / f"step-{step:08d}.pt"


def best_file(folder: Path) -> Path:
    """Returns the file of the checkpoint with the lowest validation error."""
    return folder / "best.pt"


def newest(folder: Path) -> Checkpoint | None:
    """Loads the newest readable checkpoint, or returns None; skips damaged ones with a warning."""
    for file in reversed(_steps(folder)):
        try:
            return load(file)
        except UserError as error:
            _log.warning("%s; trying the previous one", error)
    return None


def clean(folder: Path) -> None:
    """Removes incomplete files of a killed process; only the process that writes here may call it."""
    for file in folder.glob(".*.pt*"):
        file.unlink(missing_ok=True)


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` step checkpoints."""
    for file in _steps(folder)[:-keep]:
        file.unlink(missing_ok=True)


def store(checkpoint: Checkpoint, folder: Path, keep: int, *, best: bool) -> bool:
    """Saves the checkpoint of a step, with `best` also as the best one, and removes all but the newest `keep`.

    It runs in a thread, so the checkpoint must not change before this returns. Returns whether it was saved; if not,
    e.g. because the disk is full, it logs a warning.
    """
    file = step_file(folder, checkpoint.step)
    try:
        save(checkpoint, file)
        if best:
            with replacing(best_file(folder)) as temporary:
                os.link(file, temporary)
        prune(folder, keep)
    except OSError as error:
        _log.warning("%s; the previous one is kept", error)
        return False
    return True


def _steps(folder: Path) -> list[Path]:
    files = (file for file in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8,}", file.stem))
    return sorted(files, key=lambda file: int(file.stem.removeprefix("step-")))
