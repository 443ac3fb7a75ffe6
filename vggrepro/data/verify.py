"""Looks at images one by one, in processes that may die of them.

A file can crash, hang or bloat a decoder, and a scan of a million files must survive it. So each worker is a program of
its own (`python -m vggrepro.data.verify full`) that is told a place on a line of standard input and answers with one on
standard output; when it dies or falls silent, the image it was at is to blame, and another takes over behind it.
"""

import json
import os
import queue
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from vggrepro.data.decode import BadImageError, opened, read, rgb
from vggrepro.errors import ending_of

How = Literal["full", "header"]
_SILENCE_S = 120.0
_MEMORY_BYTES = 4 << 30  # what a worker may map; PIL itself refuses images beyond 179 megapixels
_HEADER_BYTES = 1 << 16
_MOST_ELONGATED = 100  # ILSVRC's own stay below 20; rescaled whole, a 4000x1 image would have 256x1024000 px


class Place(NamedTuple):
    """Where an image's bytes are."""

    path: str
    offset: int
    length: int


class Finding(NamedTuple):
    """What was seen of an image."""

    width: int
    height: int
    format: str
    status: str
    """ok; ok-odd: what is odd; rejected: why."""
    mean: tuple[float, float, float] | None = None
    """Mean RGB, grey levels, where asked for."""


def verify(chunks: Iterable[Sequence[Place]], how: How, *, mean: bool = False) -> Iterator[list[Finding]]:
    """Findings for each chunk of places, in order; `full` decodes every image, `header` none."""
    number = len(os.sched_getaffinity(0))
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    with ExitStack() as stack:
        for _ in range(number):
            worker = _Worker(how, mean)
            stack.callback(worker.stop)
            idle.put(worker)
        pool = ThreadPoolExecutor(number)
        stack.callback(pool.shutdown, cancel_futures=True)

        def findings(chunk: Sequence[Place]) -> list[Finding]:
            worker = idle.get()
            try:
                return worker.findings(chunk)
            finally:
                idle.put(worker)

        yield from pool.map(findings, chunks)


class _Worker:
    """One process, started again when it dies."""

    def __init__(self, how: How, mean: bool) -> None:
        self._command = [sys.executable, "-m", "vggrepro.data.verify", how, *(["mean"] if mean else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def findings(self, places: Sequence[Place]) -> list[Finding]:
        found: list[Finding] = []
        tried = -1
        while len(found) < len(places):
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(b"".join(json.dumps(place).encode() + b"\n" for place in places[len(found) :]))
                process.stdin.flush()
                while len(found) < len(places):
                    found.append(Finding(*json.loads(self._line(process))))
            except (BrokenPipeError, EOFError, TimeoutError) as error:
                self.stop()
                if tried < len(found) and not isinstance(error, TimeoutError):
                    tried = len(found)  # once more: it may have been killed from outside, for want of memory
                    continue
                died = f"its decoder {ending_of(process.returncode)}"
                why = f"no end in {_SILENCE_S:.0f} s" if isinstance(error, TimeoutError) else died
                found.append(Finding(0, 0, "", f"rejected: {why}"))
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        self._unread = b""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return self._process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + _SILENCE_S
        while b"\n" not in self._unread:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            some = os.read(process.stdout.fileno(), 1 << 16)
            if not some:
                raise EOFError
            self._unread += some
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._process:
            if self._process.stdin:
                with suppress(BrokenPipeError):
                    self._process.stdin.close()
            try:
                self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
        self._process = None


def look(place: Place, how: How, mean: bool) -> Finding:
    """What one image is. Never raises, but a decoder may crash."""
    try:
        if how == "header" and place.length > _HEADER_BYTES:
            try:
                return _look(read(place.path, place.offset, _HEADER_BYTES), how, mean)
            except BadImageError:
                pass  # the header may be longer
        return _look(read(place.path, place.offset, place.length), how, mean)
    except BadImageError as error:
        return Finding(0, 0, "", f"rejected: {error}")


def _look(encoded: bytes, how: How, mean: bool) -> Finding:
    with opened(encoded) as image:
        if max(image.size) > _MOST_ELONGATED * min(image.size):
            raise BadImageError(f"more than {_MOST_ELONGATED} times longer than wide")
        oddities = list(_oddities(image))
        average: tuple[float, float, float] | None = None
        if how == "full":
            image.load()
            if mean:
                red, green, blue = np.asarray(rgb(image)).mean(axis=(0, 1)).tolist()
                average = (red, green, blue)
        # after decoding: PIL reads on for EXIF, and would then take a damaged PNG for a whole one
        if _rotated(image):
            oddities.append("EXIF rotation")
        odd = ", ".join(oddities)
        return Finding(*image.size, image.format or "", f"ok-odd: {odd}" if odd else "ok", average)


def _oddities(image: Image.Image) -> Iterator[str]:
    """What keeps an image from being an ordinary JPEG, whose pixels every decoder gives alike."""
    if image.format != "JPEG":
        yield image.format or "unknown format"
    if image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F")):
        yield "grey"
    elif image.mode == "P":
        yield "palette"
    elif image.mode != "RGB":
        yield image.mode
    if image.format == "JPEG" and image.mode == "RGB" and image.info.get("adobe_transform") == 0:
        yield "RGB components"
    if image.info.get("progressive"):
        yield "progressive"


def _rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(0x0112, 1) not in (0, 1)
    except Exception:  # whatever malformed metadata provoke; pixels are fine
        return False


def main() -> None:
    """The worker process."""
    how: How = "full" if sys.argv[1] == "full" else "header"
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        finding = look(Place(*json.loads(line)), how, "mean" in sys.argv[2:])
        sys.stdout.write(json.dumps(finding) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
