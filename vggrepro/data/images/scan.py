"""How an index is made: every image of the sources looked at once.

What has been looked at is kept in a journal, so that a scan that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from vggrepro.data.images.index import Index, load, stamp_of
from vggrepro.data.images.members import SPLITS, Member
from vggrepro.data.images.sources import FoundImages, find, require_readable_names, signature
from vggrepro.data.images.verify import Finding, How, verify
from vggrepro.errors import UserError
from vggrepro.files import why_unwritable
from vggrepro.progress import echo

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int, int], None]
"""Is told how many images are done, and of how many."""
_CHUNK = 64  # images that a verifying process is given at once


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
    """Indexes sources of any layout (see :func:`vggrepro.data.images.sources.find`), looking at every image.

    `how="full"` decodes each once, `"header"` reads headers only. `classes` lists all classes, where the images may
    be of some of them only. `mean` (with full) computes the mean colour of the training images. What has been
    looked at is kept in `journal` until the end, so that a scan that was interrupted goes on where it was.
    `found(images)` and `progress(done, total)` report. Raises UserError.
    """
    images, source = find(sources, classes, found), ", ".join(map(str, sources))
    if mean and images.members[0].split != "train":
        raise UserError(f"--mean is of training images, and {source} has none; leave it out")
    return _indexed(images, source, how, mean, journal, progress)


def _indexed(images: FoundImages, source: str, how: How, mean: bool, journal: Path | None, progress: Progress) -> Index:
    """Indexes images that were found, in the order of the index. Else as :func:`scan`."""
    members = images.members
    containers = dict.fromkeys(member.container for member in members)
    labels = [str(images.label_file)] if images.label_file else []  # one in a tar has the stamp of the tar
    seen = {file: stamp for file in (*containers, *labels) if (stamp := stamp_of(file))}
    findings = _findings(members, how, mean, journal, progress)
    if journal:
        journal.unlink(missing_ok=True)
    return Index(
        table=_table(members, findings, images.classes),
        classes=images.classes,
        source=source,
        verified=how,
        archives=tuple(dict.fromkeys(member.container for member in members if member.archive)),
        mean_rgb=_mean_rgb(members, findings) if mean else None,
        seen=seen,
        notes=images.notes,
    )


def scan_folder(root: Path) -> Index:
    """A scan of one source by header. Raises UserError."""
    return scan([root], "header")


def _findings(
    members: Sequence[Member], how: How, mean: bool, journal: Path | None, progress: Progress
) -> list[Finding]:
    """What is seen of each member; taken from the journal as far as it goes, which has a line a chunk."""
    places = [(member.file, member.offset, member.length, member.mtime_ns) for member in members]
    listing = hashlib.sha256(repr((how, mean, places)).encode()).hexdigest()
    findings: list[Finding] = []
    if journal and journal.exists():
        head, *lines = journal.read_text().splitlines(keepends=True) or [""]
        if head.strip() == listing:
            for line in lines:
                if line.endswith("\n"):  # the last one may be torn
                    findings += [Finding(*finding) for finding in json.loads(line)]
    left = members[len(findings) :]
    chunks = [left[start : start + _CHUNK] for start in range(0, len(left), _CHUNK)]
    with _rewritten(journal) as file:
        file.write(f"{listing}\n{json.dumps(findings)}\n" if findings else f"{listing}\n")
        for chunk in verify(chunks, how, mean=mean):
            findings += chunk
            file.write(json.dumps(chunk) + "\n")
            file.flush()
            progress(len(findings), len(members))
    return findings


def _rewritten(journal: Path | None) -> TextIO:
    """The journal, emptied; without one, a file that keeps nothing. Raises UserError."""
    if journal is None:
        return open(os.devnull, "w")
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        return journal.open("w")
    except OSError as error:
        raise UserError(f"{journal.parent} cannot be written to ({error.strerror}); choose another --out") from None


def _table(members: Sequence[Member], findings: Sequence[Finding], classes: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    usable = [finding.status.startswith("ok") for finding in findings]
    order = sorted(range(len(members)), key=lambda row: (SPLITS.index(members[row].split), not usable[row]))
    rows = [(members[row], findings[row]) for row in order]
    label = {name: number for number, name in enumerate(classes)}
    few = pa.dictionary(pa.int16(), pa.string())  # different words, in two bytes each
    splits = pa.array([SPLITS.index(m.split) for m, _ in rows], pa.int8())
    return pa.table(
        {
            "container": pa.array([m.container for m, _ in rows]).dictionary_encode(),
            "name": pa.array([m.name for m, _ in rows]),
            "offset": pa.array([m.offset for m, _ in rows], pa.int64()),
            "length": pa.array([m.length for m, _ in rows], pa.int64()),
            "split": pa.DictionaryArray.from_arrays(splits, pa.array(SPLITS)),
            "label": pa.array([label[m.class_name] for m, _ in rows], pa.int64()),
            "size": pa.array([(f.height, f.width) for _, f in rows], pa.list_(pa.int64(), 2)),
            "format": pa.array([f.format for _, f in rows], few),
            "status": pa.array([f.status for _, f in rows], few),
        }
    ).combine_chunks()


def _mean_rgb(members: Sequence[Member], findings: Sequence[Finding]) -> tuple[float, float, float] | None:
    means = [f.mean for m, f in zip(members, findings, strict=True) if m.split == "train" and f.mean]
    if not means:
        return None
    red, green, blue = np.mean(means, axis=0).tolist()
    return red, green, blue


def open_index(root: str | None, index: Path | None, cache: Path, progress: Progress) -> Index:
    """The index a configuration means: `data.index`, or a scan of `data.root` kept in `cache` for the next time.

    A kept scan is used again while the listing (names, sizes, times of change) is what it was. Raises UserError.
    """
    if index is not None:
        return load(index)
    if root is None:
        raise UserError(
            "data.root is not set: name an ImageNet-style folder, or data.index, or data.root=builtin:digits"
        )
    folder = Path(root)
    if not folder.exists():
        raise UserError(f"data.root={root} does not exist; give a folder with train/ and val/, or with the archives")
    return _kept(
        cache / f"{folder.resolve().name}-{signature([folder])[:16]}",
        lambda journal: scan([folder], "header", journal=journal, progress=progress),
    )


def open_members(
    members: Sequence[Member], classes: Sequence[str], source: Path, cache: Path, progress: Progress
) -> Index:
    """A scan by header of images that were found already, kept in `cache` for the next time.

    It is used again while the images (places, sizes, times of change) and classes are what they were. Raises UserError.
    """
    require_readable_names(members)
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for archive in sorted({member.container for member in members if member.archive}):
        digest.update(f"{archive} {stamp_of(archive)}\n".encode())
    for member in members:
        digest.update("\0".join(map(str, member)).encode())
    images = FoundImages(members, tuple(classes), (), None)
    return _kept(
        cache / f"{source.resolve().name}-{digest.hexdigest()[:16]}",
        lambda journal: _indexed(images, str(source), "header", False, journal, progress),
    )


def _kept(name: Path, make: Callable[[Path | None], Index]) -> Index:
    """The index of that name, or one that is made with a journal beside it, and kept where that is possible."""
    kept = name.with_name(f"{name.name}.arrow")
    with suppress(UserError):  # not there, of an earlier version, or torn
        return load(kept)
    if reason := why_unwritable(name.parent):
        echo(f"{name.parent} cannot be written to ({reason}), so the index is not kept; set another run.root")
        return make(None)
    made = make(name.with_name(f"{name.name}.partial"))
    made.save(kept)
    return made
