"""The run directory, whose ``metrics.jsonl`` is the truth of a run."""

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
    """One run on disk; one process at a time writes to it. Nothing is created before something is written."""

    path: Path

    @property
    def metrics(self) -> Path:
        """The file with one JSON object per line, see :meth:`append`."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def posteriors(self) -> Path:
        """The folder of stored posteriors."""
        return self.path / "posteriors"

    @property
    def boxes(self) -> Path:
        """The folder of stored boxes."""
        return self.path / "boxes"

    @property
    def features(self) -> Path:
        """The folder of stored features."""
        return self.path / "features"

    @property
    def transfers(self) -> Path:
        """The folder of what classifiers on features got right."""
        return self.path / "transfers"

    def results(self) -> list[Path]:
        """Every stored answer of the run, whatever its kind, and every part of those that are not complete yet."""
        stores = (self.posteriors, self.boxes, self.features, self.transfers)
        return sorted(file for store in stores for file in store.rglob("[!.]*.npz"))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file so that a reader, or a crash, meets the old content or the new one, never a part."""
        with replacing(self.path / name) as temporary:
            temporary.write_bytes(content)

    def write_text(self, name: str, text: str) -> None:
        """Like :meth:`write_bytes`, in UTF-8."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, obj: Any) -> None:
        """Like :meth:`write_text`, as strict JSON: the numbers that JSON lacks become "nan", "inf" and "-inf"."""
        self.write_text(name, json.dumps(_strict(obj), indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any | None:
        """The content of a JSON file, or None where there is no such file.

        Raises:
            UserError: the file is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); restore or remove it") from error

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; it is in the operating system's hands when this returns.

        Args:
            record: ``step`` (int), ``kind`` (one of ``KINDS``) and any int, float, str or bool values. ``time`` (unix
                seconds) is added. JSON has no NaN and infinities: they are written as the strings "nan", "inf" and
                "-inf", which ``float()`` reads back.
        """
        assert isinstance(record["step"], int), record
        assert record["kind"] in KINDS, record
        lease.require(self.path)
        line = json.dumps(_strict({**record, "time": time.time()}), allow_nan=False).encode() + b"\n"
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed process left a torn line: it must not swallow this one
                    line = b"\n" + line
            file.write(line)

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All records in the order of writing, or those of one kind; torn lines are passed over."""
        lines = (line for line in self._lines() if kind is None or kind.encode() in line)  # few kinds have many lines
        return [record for record in complete_records(lines) if kind in (None, record["kind"])]

    def newest(self, kind: str) -> dict[str, Any] | None:
        """The last record of a kind, searched from the end of the file; None without one."""
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
        """Whether the newest values among the records of a kind are those of this one."""
        known: dict[str, Any] = {}
        for one in self.records(kind):
            known |= one
        return record.items() <= known.items()

    def rewind(self, step: int, *, validated: bool = True) -> None:
        """Drop the records after ``step`` and any torn line: a run resumed at ``step`` writes those steps again.

        Args:
            step: iterations done.
            validated: False where the run will still validate at ``step``: then only what was trained by then is kept.
        """

        def stays(record: dict[str, Any] | None) -> bool:
            if record is None or record["step"] > step:
                return False
            return record["step"] < step or validated or record["kind"] == "train"

        lines = self._lines()
        kept = [line for line in lines if stays(parse_record(line))]
        if kept != lines:
            self.write_bytes(self.metrics.name, b"".join(line.rstrip(b"\n") + b"\n" for line in kept))

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
    """A line of `metrics.jsonl`; None where it is torn."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def complete_records(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The objects of JSON lines, without those that are torn."""
    return [record for record in map(parse_record, lines) if record is not None]
