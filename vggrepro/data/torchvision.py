"""The torchvision backend: whole pictures decoded by PIL, as torchvision's folder data sets do, in a pool of threads.

PIL lets go of the interpreter's lock while it decodes, so threads scale and nothing is forked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from vggrepro.data.decode import BadPictureError, Region, whole_region
from vggrepro.data.index import Split
from vggrepro.data.views import Ints

_AHEAD = 2  # batches being decoded ahead of the one asked for


def regions(
    split: Split, wanted: Iterable[tuple[Ints, Ints]], *, pool: ThreadPoolExecutor, readers: ThreadPoolExecutor
) -> Iterator[list[Region | BadPictureError]]:
    """Decodes batches of (pictures, boxes) in `pool`, and reads in `readers`.

    Boxes are not heeded: PIL decodes all of a picture or nothing.
    """

    def decoded(picture: int, reading: Future[bytes | BadPictureError]) -> Region | BadPictureError:
        encoded = reading.result()
        return encoded if isinstance(encoded, BadPictureError) else whole_region(encoded, split.size[picture])

    def begun(pictures: Ints) -> list[Future[Region | BadPictureError]]:
        reading = [(int(picture), readers.submit(split.read_or_reason, int(picture))) for picture in pictures]
        return [pool.submit(decoded, *picture) for picture in reading]

    batches = (begun(pictures) for pictures, _ in wanted)
    ahead = deque(islice(batches, _AHEAD))
    while ahead:
        ahead.extend(islice(batches, 1))
        yield [future.result() for future in ahead.popleft()]
