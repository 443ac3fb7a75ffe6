"""What an index holds, for people."""

from collections.abc import Iterator

from vggrepro.data.index import Index
from vggrepro.paper import value


def render(index: Index, *, names: bool) -> Iterator[str]:
    """Lines of text; with `names`, one for every image that is odd or rejected."""
    found = index.summary()
    how = "decoded" if index.verified == "full" else "headers read"
    yield f"{index.source}: {found['images']:,} images of {found['classes']:,} classes, all {how}"
    for split, n in found["splits"].items():
        yield f"  {split:6} {n:>9,}"
    yield f"  usable {found['usable']:>9,}, of these odd but decoded to RGB alike by every backend: {found['odd']:,}"
    yield f"  rejected {found['rejected']:>7,}"
    for reason, n in found["by_reason"].items():
        yield f"    {n:>9,}  {reason}"
    if index.against_ilsvrc() is not None:
        differences = "; ".join(index.against_ilsvrc() or ["complete: counts and classes are ILSVRC-2012's"])
        yield f"  ILSVRC-2012: {differences}"
    if index.mean_rgb:
        own, paper = (", ".join(f"{x:.3f}" for x in mean) for mean in (index.mean_rgb, value("mean_rgb")))
        yield f"  mean RGB of training images {own} (the paper's nets subtract {paper})"
    if names:
        for status, place in index.flagged():
            yield f"{status}\t{place}"
