"""The torchvision backend: whole pictures decoded by PIL, as torchvision's folder data sets do, in a pool of threads.

PIL lets go of the interpreter's lock while it decodes, so threads scale and nothing is forked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice

from vggrepro.data.decode import BadPictureError, Region, whole_region
from vggrepro.data.index import Split
from vggrepro.data.views import Ints

_AHEAD = 2  # batches being decoded ahead of the one asked for


def regions(
    split: Split, wanted: Iterable[tuple[Ints, Ints]], pool: ThreadPoolExecutor
) -> Iterator[list[Region | BadPictureError]]:
    """Decodes batches of (pictures, boxes); boxes are not heeded: PIL decodes all of a picture or nothing."""

    def decoded(picture: int) -> Region | BadPictureError:
        try:
            return whole_region(split.read(picture), split.size[picture])
        except BadPictureError as error:
            return error

    ahead: deque[list[Future[Region | BadPictureError]]] = deque()
    batches = ([pool.submit(decoded, int(picture)) for picture in pictures] for pictures, _ in wanted)
    with closing(batches):
        ahead.extend(islice(batches, _AHEAD))
        while ahead:
            ahead.extend(islice(batches, 1))
            yield [future.result() for future in ahead.popleft()]
