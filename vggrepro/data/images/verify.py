"""Looks at images one by one, in processes that may die of them.

A file can crash, hang or bloat a decoder, and a scan of a million files must survive it. So each worker is a program of
its own, with a pipe for standard input: it takes images and answers with a finding of each. When it dies or falls
silent, the image it was at is to blame, and another takes over behind it.

No image is to blame where a worker cannot start (its first answer says that it is ready), where the machine fails to
read, or where there is less memory than a worker may have. Its answer is then an exception, and the scan waits or ends.
"""

import os
import queue
import re
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from vggrepro.data.decode import BadImageError, opened, patiently, read_now, rgb
from vggrepro.data.images.archive_members import Member
from vggrepro.errors import UserError, ending_of, reason_of

How = Literal["full", "header"]
_AHEAD = 256  # chunks that wait behind one which takes long
_START_S = 300.0
_SILENCE_S = 120.0
_MEMORY_BYTES = 4 << 30  # what a worker may map; PIL itself refuses images beyond 179 megapixels
_HEADER_BYTES = 1 << 16
_MOST_ELONGATED = 100  # ILSVRC's own stay below 20; rescaled whole, a 4000x1 image would have 256x1024000 px


class Finding(NamedTuple):
    """What was seen of an image."""

    width: int
    height: int
    format: str
    status: str
    """ok; ok-odd: what is odd; rejected: why."""
    mean: tuple[float, float, float] | None = None
    """Mean RGB, grey levels, where asked for."""


def verify(chunks: Iterable[Sequence[Member]], how: How, *, mean: bool = False) -> Iterator[list[Finding]]:
    """Findings for each chunk of images, in order; `full` decodes every image, `header` none.

    Raises UserError for what the machine fails at.
    """
    number = len(os.sched_getaffinity(0))
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def findings(chunk: Sequence[Member]) -> list[Finding]:
        worker = idle.get()
        try:
            return worker.findings(chunk)
        finally:
            idle.put(worker)

    with ExitStack() as stack:
        for _ in range(number):
            worker = _Worker(how, mean)
            stack.callback(worker.stop)
            idle.put(worker)
        pool = ThreadPoolExecutor(number)
        stack.callback(pool.shutdown, cancel_futures=True)
        ahead: deque[Future[list[Finding]]] = deque()
        for chunk in chunks:
            try:
                ahead.append(pool.submit(findings, chunk))
            except RuntimeError as error:  # it can have no more threads
                raise UserError(f"images cannot be looked at ({error}); raise `ulimit -u`") from None
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _rejected(why: object) -> Finding:
    return Finding(0, 0, "", f"rejected: {why}")


class _Worker:
    """One process, started again when it dies."""

    def __init__(self, how: How, mean: bool) -> None:
        run = f"from {__name__} import main; main()"
        self._command = [sys.executable, "-c", run, how, *(["mean"] if mean else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._died_at: Member | None = None

    def findings(self, images: Sequence[Member]) -> list[Finding]:
        """What is seen of each. Raises UserError."""
        found: list[Finding] = []
        while len(found) < len(images):
            left = images[len(found) :]
            try:
                found += patiently(left[0].file, partial(self._first, left), archive=left[0].offset > 0)
            except BadImageError as error:
                found.append(_rejected(error))
        return found

    def _first(self, images: Sequence[Member]) -> list[Finding]:
        """What is seen of the first of these, as far as one attempt goes. Raises OSError where it does not begin."""
        process = self._process or self._start()
        found: list[Finding] = []
        failed: Exception | None = None
        try:
            self._pipe.send(images)
            while failed is None and len(found) < len(images):
                if not self._pipe.poll(_SILENCE_S):
                    return [*found, self._silent(process, images[len(found)])]
                answer = self._pipe.recv()
                if isinstance(answer, Exception):
                    failed = answer
                else:
                    found.append(answer)
        except (EOFError, ConnectionError):
            return found + self._died(process, images[len(found)])
        if failed and not found:
            raise failed
        return found

    def _silent(self, process: subprocess.Popen[bytes], image: Member) -> Finding:
        why = f"no end in {_SILENCE_S:.0f} s"
        if _waits_for_a_disk(process.pid):
            raise UserError(f"{image.file} cannot be read ({why}); is the file system mounted?")
        self.stop()
        return _rejected(why)

    def _died(self, process: subprocess.Popen[bytes], image: Member) -> list[Finding]:
        self.stop()
        died = f"its decoder {ending_of(process.returncode)}"
        if self._died_at != image:
            self._died_at = image  # once more: it may have been killed from outside, for want of memory
            return []
        if process.returncode == -signal.SIGKILL and _killed_for_memory() > self._killed_before:
            raise UserError(f"{image.file}: {died}, for want of memory; give the job more")
        return [_rejected(died)]

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that has sent a sign that it is ready. Raises UserError."""
        self._killed_before = _killed_for_memory()
        try:
            self._pipe, its = Pipe()
            with its:
                process = subprocess.Popen(
                    self._command, stdin=its.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
        except OSError as error:
            reason = reason_of(error)
        else:
            self._process = process
            assert process.stderr is not None
            with process.stderr:
                if signed := self._pipe.poll(_START_S):
                    with suppress(EOFError, ConnectionError):
                        self._pipe.recv()
                        return process
                self.stop()
                last = process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            reason = last or f"it {ending_of(process.returncode)}" if signed else f"no sign of it in {_START_S:.0f} s"
        raise UserError(
            f"a process that looks at images cannot start ({reason}); raise `ulimit -u`, `-n` or `-v`, or give the "
            f"job more memory"
        )

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._process:
            self._pipe.close()
            try:
                self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


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


def look(image: Member, how: How, mean: bool) -> Finding:
    """What an image is. Raises OSError and MemoryError for what cannot be read, but a decoder may crash."""
    try:
        if how == "header" and image.length > _HEADER_BYTES:
            with suppress(BadImageError):  # the header may be longer
                return _look(read_now(image.file, image.offset, _HEADER_BYTES), how, mean)
        return _look(read_now(image.file, image.offset, image.length), how, mean)
    except BadImageError as error:
        return _rejected(error)


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
    with Connection(sys.stdin.fileno()) as pipe, suppress(EOFError):
        pipe.send("ready")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what decoders print
        while True:
            for image in pipe.recv():
                answer = _answer(image, how, "mean" in sys.argv[2:], memory)
                pipe.send(answer)
                if isinstance(answer, Exception):
                    break


def _answer(image: Member, how: How, mean: bool, memory: int) -> Finding | OSError | UserError:
    """What is seen of an image; or what the machine fails at: an OSError where it may pass."""
    try:
        return look(image, how, mean)
    except OSError as error:
        return error
    except MemoryError:
        if memory < _MEMORY_BYTES:
            return UserError(f"{image.file} cannot be decoded in {memory >> 20} MiB of memory; raise `ulimit -v`")
        return _rejected("out of memory")
