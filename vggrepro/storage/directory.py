"""Run directory, whose ``metrics.jsonl`` is the authoritative record of a run."""

import json
import math
import mmap
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggrepro.errors import UserError
from vggrepro.files import replacing
from vggrepro.storage import lease

KINDS = ("train", "validation", "evaluation", "event")


@dataclass(frozen=True)
class RunDirectory:
    """Files of a run; only one process at a time may write to them. Folders are created at the first write."""

    path: Path

    @property
    def metrics(self) -> Path:
        """File with a JSON object per line, see :meth:`append`."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def posteriors(self) -> Path:
        """Folder of stored posteriors."""
        return self.path / "posteriors"

    @property
    def boxes(self) -> Path:
        """Folder of stored boxes."""
        return self.path / "boxes"

    @property
    def features(self) -> Path:
        """Folder of stored features."""
        return self.path / "features"

    @property
    def transfers(self) -> Path:
        """Folder of the results of classifiers on features."""
        return self.path / "transfers"

    def results(self) -> list[Path]:
        """Lists the stored results of every kind, including parts of incomplete results."""
        stores = (self.posteriors, self.boxes, self.features, self.transfers)
        return sorted(file for store in stores for file in store.rglob("[!.]*.npz"))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a small file atomically: after a crash it has either the old or the new content."""
        with replacing(self.path / name) as temporary:
            temporary.write_bytes(content)

    def write_text(self, name: str, text: str) -> None:
        """Writes text in UTF-8, see :meth:`write_bytes`."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, obj: Any) -> None:
        """Writes strict JSON, see :meth:`write_bytes`; numbers that JSON lacks become "nan", "inf" and "-inf"."""
        self.write_text(name, json.dumps(_strict(obj), indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any | None:
        """Reads a JSON file, or returns None if it does not exist. Raises UserError if it is not JSON."""
        path = self.path / name
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); restore or remove it") from error

    def append(self, record: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``, unbuffered.

        Args:
            record: ``step`` (int), ``kind`` (one of ``KINDS``) and any int, float, str or bool values. ``time`` (Unix
                seconds) is added. NaN and infinities are written as the strings "nan", "inf" and "-inf", which
                ``float()`` converts back.
        """
        assert isinstance(record["step"], int), record
        assert record["kind"] in KINDS, record
        lease.require(self.path)
        line = json.dumps(_strict({**record, "time": time.time()}), allow_nan=False).encode() + b"\n"
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed process left an incomplete line
                    line = b"\n" + line
            file.write(line)

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Reads the records, or those of a kind, in the order of writing; skips incomplete lines."""
        lines = (line for line in self._lines() if kind is None or kind.encode() in line)  # saves parsing most lines
        return [record for record in complete_records(lines) if kind in (None, record["kind"])]

    def newest(self, kind: str) -> dict[str, Any] | None:
        """Returns the last record of a kind, searched from the end of the file, or None."""
        with (
            suppress(FileNotFoundError, ValueError),  # an empty file cannot be mapped
            self.metrics.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            end = len(content)
            while end:
                start = content.rfind(b"\n", 0, end - 1) + 1
                record = parse_record(content[start:end])
                if record and record["kind"] == kind:
                    return record
                end = start
        return None

    def already_logged(self, kind: str, record: Mapping[str, Any]) -> bool:
        """Whether the newest values in the records of a kind equal those of this record."""
        newest: dict[str, Any] = {}
        for logged in self.records(kind):
            newest |= logged
        return record.items() <= newest.items()

    def rewind(self, step: int, *, validated: bool = True) -> None:
        """Removes the records after ``step`` and incomplete lines, because a resumed run writes those steps again.

        Unless the validation at ``step`` is done (`validated`), only the training records of ``step`` remain.
        """

        def remains(record: dict[str, Any] | None) -> bool:
            if record is None or record["step"] > step:
                return False
            return record["step"] < step or validated or record["kind"] == "train"

        lines = self._lines()
        remaining = [line for line in lines if remains(parse_record(line))]
        if remaining != lines:
            self.write_bytes(self.metrics.name, b"".join(line.rstrip(b"\n") + b"\n" for line in remaining))

    def _lines(self) -> list[bytes]:
        try:
            return self.metrics.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []


def _strict(obj: Any) -> Any:
    if isinstance(obj, float) and not math.isfinite(obj):
        return str(float(obj))
    if isinstance(obj, Mapping):
        return {key: _strict(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_strict(value) for value in obj]
    return obj


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Parses a line of `metrics.jsonl`; returns None if it is incomplete."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def complete_records(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Parses JSON lines, and skips incomplete ones."""
    return [record for record in map(parse_record, lines) if record is not None]
