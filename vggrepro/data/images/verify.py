"""Inspects images in worker processes, because a file can crash, hang or bloat a decoder.

A worker is a separate program with a pipe as standard input: it receives images and sends a finding for each. When it
dies or stops responding, the current image is rejected, and another worker continues with the next image. No image is
rejected if a worker cannot start, if the machine fails to read, or if less memory is available than a worker may use:
the worker sends an exception, and the scan waits or ends.
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
_AHEAD = 256  # chunks that may wait for a slow one
_START_S = 300.0
_SILENCE_S = 120.0
_MEMORY_BYTES = 4 << 30  # address space of a worker; PIL refuses images beyond 179 megapixels
_HEADER_BYTES = 1 << 16
_MAX_ASPECT_RATIO = 100  # ILSVRC's are below 20; rescaled, a 4000x1 image would have 256x1024000 px


class Finding(NamedTuple):
    """The result of inspecting an image."""

    width: int
    height: int
    format: str
    status: str  # ok; ok-odd: the oddities; rejected: the reason
    mean: tuple[float, float, float] | None = None  # mean RGB, grey levels, if requested


def verify(chunks: Iterable[Sequence[Member]], how: How, *, mean: bool = False) -> Iterator[list[Finding]]:
    """Yields findings per chunk of images, in order; `full` decodes every image, `header` none. Raises UserError."""
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
            except RuntimeError as error:  # no more threads
                raise UserError(f"images cannot be inspected ({error}); raise `ulimit -u`") from None
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _rejected(reason: object) -> Finding:
    return Finding(0, 0, "", f"rejected: {reason}")


class _Worker:
    """A process that is started again when it dies."""

    def __init__(self, how: How, mean: bool) -> None:
        run = f"from {__name__} import main; main()"
        self._command = [sys.executable, "-c", run, how, *(["mean"] if mean else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._died_at: Member | None = None

    def findings(self, images: Sequence[Member]) -> list[Finding]:
        """Inspects images. Raises UserError."""
        found: list[Finding] = []
        while len(found) < len(images):
            remaining = images[len(found) :]
            first = remaining[0]
            try:
                found += patiently(first.file, partial(self._attempt, remaining), archive=first.offset > 0)
            except BadImageError as error:
                found.append(_rejected(error))
        return found

    def _attempt(self, images: Sequence[Member]) -> list[Finding]:
        """Inspects images up to the first failure. Raises the failure if it is the first image's."""
        process = self._process or self._start()
        found: list[Finding] = []
        failed: Exception | None = None
        try:
            self._pipe.send(images)
            while failed is None and len(found) < len(images):
                if not self._pipe.poll(_SILENCE_S):
                    return [*found, self._on_silence(process, images[len(found)])]
                message = self._pipe.recv()
                if isinstance(message, Exception):
                    failed = message
                else:
                    found.append(message)
        except (EOFError, ConnectionError):
            return found + self._on_death(process, images[len(found)])
        if failed and not found:
            raise failed
        return found

    def _on_silence(self, process: subprocess.Popen[bytes], image: Member) -> Finding:
        reason = f"not finished after {_SILENCE_S:.0f} s"
        if _waits_for_disk(process.pid):
            raise UserError(f"{image.file} cannot be read ({reason}); is the file system mounted?")
        self.stop()
        return _rejected(reason)

    def _on_death(self, process: subprocess.Popen[bytes], image: Member) -> list[Finding]:
        self.stop()
        reason = f"its decoder {ending_of(process.returncode)}"
        if self._died_at != image:
            self._died_at = image  # retry: something else may have killed the process
            return []
        if process.returncode == -signal.SIGKILL and _count_oom_kills() > self._oom_kills_before:
            raise UserError(f"{image.file}: {reason} because memory ran out; give the job more memory")
        return [_rejected(reason)]

    def _start(self) -> subprocess.Popen[bytes]:
        """Starts a process and waits until it is ready. Raises UserError."""
        self._oom_kills_before = _count_oom_kills()
        try:
            self._pipe, child_end = Pipe()
            with child_end:
                process = subprocess.Popen(
                    self._command, stdin=child_end.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
        except OSError as error:
            reason = reason_of(error)
        else:
            self._process = process
            assert process.stderr is not None
            with process.stderr:
                if has_message := self._pipe.poll(_START_S):
                    with suppress(EOFError, ConnectionError):
                        self._pipe.recv()
                        return process
                self.stop()
                last = process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            ending = last or f"it {ending_of(process.returncode)}"
            reason = ending if has_message else f"not ready after {_START_S:.0f} s"
        raise UserError(
            f"a process that inspects images cannot start ({reason}); raise `ulimit -u`, `-n` or `-v`, or give the job "
            f"more memory"
        )

    def stop(self) -> None:
        """Ends the process, if it runs."""
        if self._process:
            self._pipe.close()
            try:
                self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


def _waits_for_disk(process: int) -> bool:
    """Whether a process is in uninterruptible sleep, as when the server of a network file system is down."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].startswith("D")
    return False


def _count_oom_kills() -> int:
    """Number of processes that Linux has killed because memory ran out; 0 if unknown."""
    with suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE):
            return int(found[1])
    return 0


def inspect(image: Member, how: How, mean: bool) -> Finding:
    """Inspects an image in this process, which a decoder may crash. Raises OSError and MemoryError."""
    try:
        if how == "header" and image.length > _HEADER_BYTES:
            with suppress(BadImageError):  # the header may be longer
                return _inspect(read_now(image.file, image.offset, _HEADER_BYTES), how, mean)
        return _inspect(read_now(image.file, image.offset, image.length), how, mean)
    except BadImageError as error:
        return _rejected(error)


def _inspect(encoded: bytes, how: How, mean: bool) -> Finding:
    with opened(encoded) as image:
        if max(image.size) > _MAX_ASPECT_RATIO * min(image.size):
            raise BadImageError(f"more than {_MAX_ASPECT_RATIO} times longer than wide")
        oddities = list(_oddities(image))
        average: tuple[float, float, float] | None = None
        if how == "full":
            image.load()
            if mean:
                red, green, blue = np.asarray(rgb(image)).mean(axis=(0, 1)).tolist()
                average = (red, green, blue)
        # after decoding: PIL reads on for EXIF, and would then accept a damaged PNG
        if _rotated(image):
            oddities.append("EXIF rotation")
        odd = ", ".join(oddities)
        return Finding(*image.size, image.format or "", f"ok-odd: {odd}" if odd else "ok", average)


def _oddities(image: Image.Image) -> Iterator[str]:
    """Yields the differences from an ordinary JPEG, which every decoder decodes to the same pixels."""
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
    except Exception:  # PIL raises anything for malformed metadata, while the pixels are fine
        return False


def main() -> None:
    """Runs a worker process."""
    how: How = "full" if sys.argv[1] == "full" else "header"
    limits = resource.getrlimit(resource.RLIMIT_AS)
    memory = min(limit for limit in (_MEMORY_BYTES, *limits) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (memory, limits[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Connection(sys.stdin.fileno()) as pipe, suppress(EOFError):
        pipe.send("ready")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # discards the decoders' output
        while True:
            for image in pipe.recv():
                result = _finding_or_failure(image, how, "mean" in sys.argv[2:], memory)
                pipe.send(result)
                if isinstance(result, Exception):
                    break


def _finding_or_failure(image: Member, how: How, mean: bool, memory: int) -> Finding | OSError | UserError:
    """Inspects an image, or returns the failure of the machine: an OSError if it may pass."""
    try:
        return inspect(image, how, mean)
    except OSError as error:
        return error
    except MemoryError:
        if memory < _MEMORY_BYTES:
            return UserError(f"{image.file} cannot be decoded in {memory >> 20} MiB of memory; raise `ulimit -v`")
        return _rejected("out of memory")
