"""Text reports on the contents of an index and of a box set."""

from collections.abc import Iterator, Mapping

from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.images.index import Index
from vggrepro.paper import value


def render(index: Index, *, names: bool) -> Iterator[str]:
    """Yields lines that summarise an index; with `names`, also a line per odd or rejected image."""
    found = index.summary()
    how = "decoded" if index.verified == "full" else "headers read"
    yield f"{index.source}: {found['images']:,} images of {found['classes']:,} classes, all {how}"
    for split, n in found["splits"].items():
        yield f"  {split:6} {n:>9,}"
    yield f"  usable {found['usable']:>9,}, including odd ones that every backend decodes alike: {found['odd']:,}"
    yield from _reasons(found["by_reason"]["odd"])
    yield f"  rejected {found['rejected']:>7,}"
    yield from _reasons(found["by_reason"]["rejected"])
    if found["ilsvrc"] is not None:
        differences = "; ".join(found["ilsvrc"] or ["complete: counts and classes are ILSVRC-2012's"])
        yield f"  ILSVRC-2012: {differences}"
    yield from (f"  {note}" for note in index.notes)
    if index.mean_rgb:
        measured, paper = (", ".join(f"{x:.3f}" for x in mean) for mean in (index.mean_rgb, value("mean_rgb")))
        yield f"  mean RGB of training images {measured} (the paper's nets subtract {paper})"
    if names:
        yield from map("\t".join, index.flagged())


def render_boxes(boxes: BoxSet, *, names: bool) -> Iterator[str]:
    """Yields lines that summarise a box set; with `names`, also a line per box and file that is not ok."""
    found = boxes.counts
    yield f"{', '.join(boxes.sources)}: {found['boxes']:,} boxes, of {found['annotations']:,} annotations"
    for split, images in found["images"].items():
        yield f"  {split:6} {images['with']:>9,} images with boxes, {images['without']:,} without"
    yield f"  clipped  {found['clipped']:>7,}"
    for kind, title in (("left_out", "left out"), ("unread", "unread")):
        yield f"  {title:8} {sum(found[kind].values()):>7,}"
        yield from _reasons(found[kind])
    yield f"  of rejected images {found['rejected']:,}, of images missing from the index {found['unknown']:,}"
    if names:
        yield from map("\t".join, boxes.flagged)


def _reasons(counts: Mapping[str, int]) -> Iterator[str]:
    yield from (f"    {n:>9,}  {reason}" for reason, n in counts.items())
