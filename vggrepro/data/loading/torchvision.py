"""The torchvision backend: whole images decoded by PIL, as torchvision's folder data sets do, in a pool of threads.

PIL lets go of the interpreter's lock while it decodes, so threads scale and nothing is forked.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from vggrepro.data.decode import BadImageError, Region, whole_region
from vggrepro.data.images.index import Split
from vggrepro.data.views import Ints

_AHEAD = 2  # batches being decoded ahead of the one asked for


def regions(
    split: Split, wanted: Iterable[tuple[Ints, Ints]], *, pool: ThreadPoolExecutor, readers: ThreadPoolExecutor
) -> Iterator[list[Region | BadImageError]]:
    """Decodes batches of (images, boxes) in `pool`, and reads in `readers`.

    Boxes are not heeded: PIL decodes all of an image or nothing.
    """

    def decoded(image: int, reading: Future[bytes | BadImageError]) -> Region | BadImageError:
        encoded = reading.result()
        return encoded if isinstance(encoded, BadImageError) else whole_region(encoded, split.size[image])

    def begun(images: Ints) -> list[Future[Region | BadImageError]]:
        reading = [(int(image), readers.submit(split.read_or_reason, int(image))) for image in images]
        return [pool.submit(decoded, *image) for image in reading]

    batches = (begun(images) for images, _ in wanted)
    ahead = deque(islice(batches, _AHEAD))
    while ahead:
        ahead.extend(islice(batches, 1))
        yield [future.result() for future in ahead.popleft()]
