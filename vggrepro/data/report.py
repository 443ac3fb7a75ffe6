"""What an index holds, and what boxes there are, for people."""

from collections.abc import Iterator, Mapping

from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.images.index import Index
from vggrepro.paper import value


def render(index: Index, *, names: bool) -> Iterator[str]:
    """Lines of text; with `names`, one for every image that is odd or rejected."""
    found = index.summary()
    how = "decoded" if index.verified == "full" else "headers read"
    yield f"{index.source}: {found['images']:,} images of {found['classes']:,} classes, all {how}"
    for split, n in found["splits"].items():
        yield f"  {split:6} {n:>9,}"
    yield f"  usable {found['usable']:>9,}, of these odd but decoded to RGB alike by every backend: {found['odd']:,}"
    yield from _reasons(found["by_reason"]["odd"])
    yield f"  rejected {found['rejected']:>7,}"
    yield from _reasons(found["by_reason"]["rejected"])
    if found["ilsvrc"] is not None:
        differences = "; ".join(found["ilsvrc"] or ["complete: counts and classes are ILSVRC-2012's"])
        yield f"  ILSVRC-2012: {differences}"
    yield from (f"  {note}" for note in index.notes)
    if index.mean_rgb:
        own, paper = (", ".join(f"{x:.3f}" for x in mean) for mean in (index.mean_rgb, value("mean_rgb")))
        yield f"  mean RGB of training images {own} (the paper's nets subtract {paper})"
    if names:
        for status, place in index.flagged():
            yield f"{status}\t{place}"


def render_boxes(boxes: BoxSet, *, names: bool) -> Iterator[str]:
    """Lines of text; with `names`, one for every box and file that is not simply ok."""
    found = boxes.counts
    yield f"{', '.join(boxes.sources)}: {found['boxes']:,} boxes, of {found['annotations']:,} annotations"
    for split, images in found["images"].items():
        yield f"  {split:6} {images['with']:>9,} images with boxes, {images['without']:,} without"
    yield f"  clipped  {found['clipped']:>7,}"
    for kind, title in (("left_out", "left out"), ("unread", "unread")):
        yield f"  {title:8} {sum(found[kind].values()):>7,}"
        yield from _reasons(found[kind])
    yield f"  of rejected images {found['rejected']:,}, of images that the index does not have {found['unknown']:,}"
    if names:
        for status, place in boxes.flagged:
            yield f"{status}\t{place}"


def _reasons(counts: Mapping[str, int]) -> Iterator[str]:
    yield from (f"    {n:>9,}  {reason}" for reason, n in counts.items())
