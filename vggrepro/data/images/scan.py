"""Scans sources: inspects every image once, and makes an index.

Results are stored in a journal, so that an interrupted scan resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.images.archive_members import SPLITS, Member
from vggrepro.data.images.columns import Members, column_of, in_order
from vggrepro.data.images.index import Index, load, stamp_of
from vggrepro.data.images.sources import FoundImages, find, require_readable_name, signature
from vggrepro.data.images.verify import Finding, How, verify
from vggrepro.errors import UserError
from vggrepro.files import exclusive, why_unwritable
from vggrepro.progress import warn

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int, int], None]  # is called with the number of inspected images and their total
_NO_MEAN = (math.nan,) * 3
_CHUNK = 64  # images sent to a worker at once


def scan(
    sources: Sequence[Path],
    how: How = "full",
    *,
    classes: str | None = None,
    mean: bool = False,
    journal: Path | None = None,
    found: Callable[[int], None] = lambda images: None,
    progress: Progress = lambda done, total: None,
) -> Index:
    """Indexes sources of any layout (see :func:`vggrepro.data.images.sources.find`) and inspects every image.

    `how="full"` decodes every image, `"header"` reads headers only. `classes` lists all classes, if the images may have
    only some of them. `mean` (with `full`) computes the mean colour of the training images. `journal` stores the
    results until the end. Calls `found(images)` and `progress(done, total)`. Raises UserError.
    """
    images, source = find(sources, classes, found), ", ".join(map(str, sources))
    if mean and not len(images.members.rows_of("train")):
        raise UserError(f"--mean needs training images, but {source} has none; leave it out")
    return _indexed(images, source, how, mean, journal, progress)


def _indexed(images: FoundImages, source: str, how: How, mean: bool, journal: Path | None, progress: Progress) -> Index:
    """Indexes found images, which are in the order of the index; otherwise like :func:`scan`."""
    members = images.members
    containers = [members.containers[code] for code in in_order(members.container)]
    labels = [str(images.label_file)] if images.label_file else []  # without a stamp if it is in a tar
    seen = {file: stamp for file in (*(place for place, _ in containers), *labels) if (stamp := stamp_of(file))}
    findings = _findings(members, how, mean, journal, progress)
    table = _table(members, findings, images.classes)
    if journal:
        journal.unlink(missing_ok=True)
    return Index(
        table=table,
        classes=images.classes,
        source=source,
        verified=how,
        archives=tuple(place for place, is_archive in containers if is_archive),
        mean_rgb=_mean_rgb(members, findings) if mean else None,
        seen=seen,
        notes=images.notes,
    )


def scan_folder(root: Path) -> Index:
    """Scans a folder by header. Raises UserError."""
    return scan([root], "header")


class Findings:
    """A growing list of findings, in columns."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self.size = array("q")  # height and width of each image in turn
        self.format, self.status = array("q"), array("q")
        self.formats: dict[str, int] = {}  # numbers in `format` by name
        self.statuses: dict[str, int] = {}
        self.mean = array("d")  # mean R, G and B of each image in turn, or NaN
        self.add(findings)

    def __len__(self) -> int:
        return len(self.status)

    def add(self, findings: Iterable[Finding]) -> None:
        """Adds the findings of the next images."""
        for width, height, format_name, status, mean in findings:
            self.size.extend((height, width))
            self.format.append(self.formats.setdefault(format_name, len(self.formats)))
            self.status.append(self.statuses.setdefault(status, len(self.statuses)))
            self.mean.extend(mean or _NO_MEAN)


def _findings(members: Members, how: How, mean: bool, journal: Path | None, progress: Progress) -> Findings:
    """Inspects every member that has no finding in the journal, which has a line per chunk."""
    listing = hashlib.sha256(repr((how, mean, members.containers)).encode())
    for column in (members.container, members.offset, members.length, members.mtime_ns):
        listing.update(column.tobytes())
    for name in members.name.buffers()[1:]:
        listing.update(name)
    findings, digest = Findings(), listing.hexdigest()[:16]
    with _resumed(journal, digest, findings) as file:
        starts = range(len(findings), len(members), _CHUNK)
        for chunk in verify((members.part(start, start + _CHUNK) for start in starts), how, mean=mean):
            file.write(f"{json.dumps([digest, len(findings), chunk])}\n".encode())
            file.flush()
            findings.add(chunk)
            progress(len(findings), len(members))
    return findings


def _resumed(journal: Path | None, listing: str, findings: Findings) -> IO[bytes]:
    """Adds the journal's findings on a listing, and opens it after them, or else /dev/null. Raises UserError."""
    if journal is None:
        return open(os.devnull, "wb")
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        file = journal.open("a+b")
    except OSError as error:
        raise UserError(f"{journal.parent} cannot be written to ({error.strerror}); choose another --out") from None
    file.seek(0)
    end = 0
    with suppress(ValueError, TypeError):  # the line is torn, or of an earlier version
        # a line contains its listing and first row, because several processes may have written to the journal
        while (line := file.readline()).endswith(b"\n"):
            *position, chunk = json.loads(line)
            if position != [listing, len(findings)]:
                break
            findings.add(chunk)
            end = file.tell()
    file.truncate(end)
    return file


def _table(members: Members, findings: Findings, classes: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    usable = np.array([status.startswith("ok") for status in findings.statuses], np.bool_)[findings.status]
    order = np.lexsort((~usable, members.split))
    members = members.take(order)
    label = {name: number for number, name in enumerate(classes)}
    labels = np.array([label.get(name, -1) for name in members.classes])
    size = np.asarray(findings.size).reshape(-1, 2)[order].ravel()
    return pa.table(
        {
            "container": _encoded(members.container, [place for place, _ in members.containers], np.int32),
            "name": members.name.cast(pa.string()),
            "offset": column_of(members.offset),
            "length": column_of(members.length),
            "split": pa.DictionaryArray.from_arrays(column_of(members.split), pa.array(SPLITS)),
            "label": column_of(labels[members.class_name]),
            "size": pa.FixedSizeListArray.from_arrays(column_of(size), 2),
            "format": _encoded(np.asarray(findings.format)[order], list(findings.formats), np.int16),
            "status": _encoded(np.asarray(findings.status)[order], list(findings.statuses), np.int16),
        }
    )


def _encoded(codes: NDArray[Any], texts: Sequence[str], kind: type[np.integer[Any]]) -> pa.DictionaryArray:
    """Dictionary-encodes texts, numbered in the order of first occurrence."""
    import pyarrow as pa

    used = in_order(codes)
    number = np.zeros(len(texts), np.result_type(kind, np.min_scalar_type(-len(used))))
    number[used] = np.arange(len(used))
    return pa.DictionaryArray.from_arrays(column_of(number[codes]), pa.array([texts[code] for code in used]))


def _mean_rgb(members: Members, findings: Findings) -> tuple[float, float, float] | None:
    means = np.asarray(findings.mean).reshape(-1, 3)[members.rows_of("train")]
    means = means[~np.isnan(means[:, 0])]
    if not len(means):
        return None
    red, green, blue = means.mean(axis=0).tolist()
    return red, green, blue


def open_index(root: str | None, index: Path | None, cache: Path, progress: Progress) -> Index:
    """Opens `data.index`, or scans `data.root` unless `cache` has the index of the same listing. Raises UserError."""
    if index is not None:
        return load(index)
    if root is None:
        raise UserError(
            "data.root is not set: name an ImageNet-style folder, or data.index, or data.root=builtin:digits"
        )
    folder = Path(root)
    if not folder.exists():
        raise UserError(f"data.root={root} does not exist; give a folder with train/ and val/, or with the archives")
    return _cached(
        cache / f"{folder.resolve().name}-{signature([folder])[:16]}",
        lambda journal: scan([folder], "header", journal=journal, progress=progress),
    )


def open_members(
    members: Sequence[Member], classes: Sequence[str], source: Path, cache: Path, progress: Progress
) -> Index:
    """Scans found images by header unless `cache` has the index of the same images and classes. Raises UserError."""
    for member in members:
        require_readable_name(member)
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for archive in sorted({member.container for member in members if member.archive}):
        digest.update(f"{archive} {stamp_of(archive)}\n".encode())
    for member in members:
        digest.update("\0".join(map(str, member)).encode())
    images = FoundImages(Members.of(members), tuple(classes), (), None)
    return _cached(
        cache / f"{source.resolve().name}-{digest.hexdigest()[:16]}",
        lambda journal: _indexed(images, str(source), "header", False, journal, progress),
    )


def _cached(name: Path, make: Callable[[Path | None], Index]) -> Index:
    """Loads the index at a path without suffix, or makes it with a journal beside it, and saves it if possible."""
    path = name.with_name(f"{name.name}.arrow")
    with suppress(UserError):  # missing, of an earlier version, or torn
        return load(path)
    if reason := why_unwritable(name.parent):
        warn(f"{name.parent} cannot be written to ({reason}), so the index is not stored; set another run.root")
        return make(None)
    with exclusive(name.with_name(f".{name.name}.lock")):
        with suppress(UserError):  # another process has made it in the meantime
            return load(path)
        index = make(name.with_name(f"{name.name}.partial"))
        index.save(path)
        return index
