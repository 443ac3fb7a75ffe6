"""A net on disk: weights, preprocessing and provenance; and, to go on training, momentum, schedule and step.

A checkpoint holds plain types and tensors only and loads with `weights_only=True`: no code is ever executed from one.
It is written under a temporary name, flushed to the disk and renamed, so that a file with its final name is whole.
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
    """What one file holds."""

    config: dict[str, Any]
    """The stage's whole configuration."""
    step: int
    """Iterations done."""
    weights: dict[str, torch.Tensor]
    """State dict of the net, on the CPU."""
    preprocessing: dict[str, Any]
    """What the weights expect: order and range of the channels, and the mean that is subtracted."""
    provenance: dict[str, Any]
    """Fingerprint and classes of the data set, parent's weights and layer map, versions."""
    training: dict[str, Any] = field(default_factory=dict)
    """Momentum and schedule; empty in a finished stage's final checkpoint."""

    @property
    def stage(self) -> Config:
        """The configuration, typed."""
        return Config.model_validate(self.config)


def weights_hash(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, shapes and values: the identity of a net, whatever file it lies in."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes all or nothing. Raises OSError (disk full, say); what was there before stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({"format": _FORMAT} | vars(checkpoint), file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
        free = shutil.disk_usage(path.parent).free / 2**20  # torch's writer does not say that the disk was full
        raise OSError(f"checkpoint {path} could not be written, {free:.0f} MiB are free there: {error}") from error


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of this program, whole or not, and not another program's weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            return _FORMAT.encode() in archive.read(record)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint to the CPU. Raises UserError for a file that is missing, torn, or not one of ours."""
    try:
        content = read_torch(path)
    except FileNotFoundError:
        raise UserError(
            f"checkpoint {path} does not exist; name the run directory of a finished stage, or one of its checkpoints"
        ) from None
    except Exception as error:
        raise UserError(
            f"checkpoint {path} is torn or not a checkpoint ({reason_of(error, 120)}); use another one"
        ) from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{path} is not a checkpoint of this program; use one of a run's checkpoints")
    return Checkpoint(**{key: content[key] for key in Checkpoint.__dataclass_fields__})


def step_file(folder: Path, step: int) -> Path:
    """The name of the checkpoint of a step."""
    return folder / f"step-{step:08d}.pt"


def best_file(folder: Path) -> Path:
    """The checkpoint with the lowest validation error."""
    return folder / "best.pt"


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; torn ones are passed over with a warning."""
    for file in reversed(_steps(folder)):
        try:
            return load(file)
        except UserError as error:
            _log.warning("%s; trying the one before it", error)
    return None


def clean(folder: Path) -> None:
    """Removes what a killed writer has left half written; for the one process that writes here, before it does."""
    for file in folder.glob(".*.pt*"):
        file.unlink(missing_ok=True)


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` step checkpoints."""
    for file in _steps(folder)[:-keep]:
        file.unlink(missing_ok=True)


def store(checkpoint: Checkpoint, folder: Path, keep: int, *, best: bool) -> bool:
    """Saves the checkpoint of a step, as the best one, too, where it is, and removes all but the newest `keep`.

    For a thread, so that training does not wait for the disk; the checkpoint must not change until this returns whether
    it was saved. When the disk is full the one before stays, with a warning.
    """
    file = step_file(folder, checkpoint.step)
    try:
        save(checkpoint, file)
        if best:  # under a second name, in place of what had it
            with replacing(best_file(folder)) as temporary:
                os.link(file, temporary)
        prune(folder, keep)
    except OSError as error:
        _log.warning("%s; the one before it is kept", error)
        return False
    return True


def _steps(folder: Path) -> list[Path]:
    files = (file for file in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8,}", file.stem))
    return sorted(files, key=lambda file: int(file.stem.removeprefix("step-")))
