"""Looks at images one by one, in processes that may die of them.

A file can crash, hang or bloat a decoder, and a scan of a million files must survive it. So each worker is a program of
its own (`python -m vggrepro.data.verify full`) that is told a place on a line of standard input and answers with one on
standard output; when it dies or falls silent, the image it was at is to blame, and another takes over behind it.

No image is to blame where a worker cannot start (a line from it says that it is ready), where the machine fails to
read, or where there is less memory than a worker may have. Its answer is then a number of `errno`, or a text, and the
scan waits or ends.
"""

import json
import os
import queue
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from vggrepro.data.decode import BadImageError, attempted, opened, patiently, read_now, rgb
from vggrepro.errors import UserError, ending_of, reason_of

How = Literal["full", "header"]
_START_S = 300.0
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
    """Findings for each chunk of places, in order; `full` decodes every image, `header` none.

    Raises UserError for what the machine fails at.
    """
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

        try:
            found = pool.map(findings, chunks)
        except RuntimeError as error:  # it can have no more threads
            raise UserError(f"images cannot be looked at ({error}); raise `ulimit -u`") from None
        yield from found


class _Worker:
    """One process, started again when it dies."""

    def __init__(self, how: How, mean: bool) -> None:
        self._command = [sys.executable, "-m", "vggrepro.data.verify", how, *(["mean"] if mean else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._died_at: Place | None = None

    def findings(self, places: Sequence[Place]) -> list[Finding]:
        """What is seen of each. Raises UserError."""
        found: list[Finding] = []
        while len(found) < len(places):
            patiently(places[len(found)].path, partial(self._find, places, found), archive=True)
        return found

    def _find(self, places: Sequence[Place], found: list[Finding]) -> None:
        """Adds to what is found of these. Raises OSError where the machine fails at the first."""
        process = self._process or self._start()
        assert process.stdin is not None
        first = len(found)
        failed: int | str | None = None
        try:
            process.stdin.write(b"".join(json.dumps(place).encode() + b"\n" for place in places[first:]))
            process.stdin.flush()
            while failed is None and len(found) < len(places):
                answer = json.loads(self._line(process, _SILENCE_S))
                if isinstance(answer, list):
                    found.append(Finding(*answer))
                else:
                    failed = answer
        except TimeoutError:
            path, why = places[len(found)].path, f"no end in {_SILENCE_S:.0f} s"
            if _waits_for_a_disk(process.pid):
                raise UserError(f"{path} cannot be read ({why}); is the file system mounted?") from None
            self.stop()
            found.append(Finding(0, 0, "", f"rejected: {why}"))
        except (BrokenPipeError, EOFError):
            self.stop()
            place, died = places[len(found)], f"its decoder {ending_of(process.returncode)}"
            if self._died_at != place:
                self._died_at = place  # once more: it may have been killed from outside, for want of memory
            elif process.returncode == -signal.SIGKILL and _killed_for_memory() > self._killed_before:
                raise UserError(f"{place.path}: {died}, for want of memory; give the job more") from None
            else:
                found.append(Finding(0, 0, "", f"rejected: {died}"))
        if failed is not None:
            self.stop()
        if isinstance(failed, str):
            raise UserError(failed)
        if failed is not None and len(found) == first:
            raise OSError(failed, os.strerror(failed))

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that has said that it is ready. Raises UserError."""
        self._unread = b""
        self._killed_before = _killed_for_memory()
        pipe = subprocess.PIPE
        try:
            process = self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise _no_start(reason_of(error)) from None
        assert process.stderr is not None
        with process.stderr:
            try:
                self._line(process, _START_S)
            except (EOFError, TimeoutError) as error:
                self.stop()
                *_, last = process.stderr.read().decode(errors="replace").strip().rpartition("\n")
                silent = f"no sign of it in {_START_S:.0f} s" if isinstance(error, TimeoutError) else ""
                raise _no_start(silent or last or f"it {ending_of(process.returncode)}") from None
        return process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
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


def _no_start(reason: str) -> UserError:
    return UserError(
        f"a process that looks at images cannot start ({reason}); raise `ulimit -u`, `-n` or `-v`, or give the job "
        f"more memory"
    )


def _waits_for_a_disk(process: int) -> bool:
    """Whether a process cannot even be interrupted: as in front of a network file system whose server is away."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].startswith("D")
    return False


def _killed_for_memory() -> int:
    """How many processes Linux has killed for want of memory; 0 where it does not say."""
    with suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE):
            return int(found[1])
    return 0


def look(place: Place, how: How, mean: bool) -> Finding:
    """What one image is. Raises OSError and MemoryError for what the machine fails at, but a decoder may crash."""
    try:
        if how == "header" and place.length > _HEADER_BYTES:
            try:
                return _look(_read(place, _HEADER_BYTES), how, mean)
            except BadImageError:
                pass  # the header may be longer
        return _look(_read(place, place.length), how, mean)
    except BadImageError as error:
        return Finding(0, 0, "", f"rejected: {error}")


def _read(place: Place, most: int) -> bytes:
    return attempted(place.path, partial(read_now, place.path, place.offset, most), archive=place.offset > 0)


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
    limits = resource.getrlimit(resource.RLIMIT_AS)
    memory = min(limit for limit in (_MEMORY_BYTES, *limits) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (memory, limits[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what decoders have to say
    for line in sys.stdin.buffer:
        print(json.dumps(_answer(Place(*json.loads(line)), how, "mean" in sys.argv[2:], memory)), flush=True)


def _answer(place: Place, how: How, mean: bool, memory: int) -> Finding | int | str:
    """What is seen of an image; or what the machine fails at: `errno` where it may pass, a line where it does not."""
    try:
        return look(place, how, mean)
    except OSError as error:
        return error.errno or str(error)
    except MemoryError:
        if memory < _MEMORY_BYTES:
            return f"{place.path} cannot be decoded in {memory >> 20} MiB of memory; raise `ulimit -v`"
        return Finding(0, 0, "", "rejected: out of memory")


if __name__ == "__main__":
    main()
