"""Takes a picture of a page that a server draws by JavaScript, when it is ready: by Chromium's remote debugging.

    python docs/img/make.py docs/img/show.png http://127.0.0.1:8511 --server "vggrepro show runs/demo/D --port 8511"

It starts the server, waits until the page answers and shows what is waited for, takes the picture and ends the server.
The package `websockets` comes with streamlit.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_STEP_S = 0.2


def main() -> None:
    """Reads the options, and takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the PNG to write")
    parser.add_argument("url", help="of the page")
    parser.add_argument("--server", help="command to start first, and to end afterwards")
    parser.add_argument("--size", default="1280x900", help="of the window, px; default 1280x900")
    parser.add_argument("--until", default="document.readyState == 'complete'", help="JavaScript that must become true")
    parser.add_argument("--do", action="append", default=[], help="JavaScript to run then, e.g. a click; repeatable")
    parser.add_argument("--settle", type=float, default=2.0, help="seconds to wait before the picture, after each --do")
    parser.add_argument("--dark", action="store_true", help="as a reader sees it whose system is dark")
    parser.add_argument("--palette", action="store_true", help="256 colours, dithered: half the size")
    parser.add_argument("--full", action="store_true", help="all of the page, not only the window")
    parser.add_argument("--wait", type=float, default=120.0, help="seconds within which all must be there")
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM", "chromium"))
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    if given.server and answers(given.url):
        sys.exit(f"{given.url} answers already, before its server is started; choose another port")
    with (
        running(shlex.split(given.server) if given.server else None) as going,
        chromium(given.chromium, given.wait) as port,
    ):
        until(lambda: not going() or answers(given.url), given.wait, f"{given.url} does not answer")
        if not going():
            sys.exit(f"the server has ended: {given.server}")
        with Tab(port) as tab:
            tab.resize(width, height)
            if given.dark:
                tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
            tab.call("Page.navigate", url=given.url)
            for script in (None, *given.do):
                if script is not None:
                    print(script, "->", tab.evaluate(script))
                until(lambda: tab.evaluate(f"!!({given.until})"), given.wait, f"never true: {given.until}")
                time.sleep(given.settle)
            if given.full:
                tab.resize(width, max(height, int(tab.evaluate(_CONTENT_HEIGHT))))
                time.sleep(given.settle)
            png = base64.b64decode(tab.call("Page.captureScreenshot", format="png")["data"])
    given.file.write_bytes(with_palette(png) if given.palette else png)
    print(f"{given.file}: {given.file.stat().st_size / 1000:.0f} kB")


# What scrolls may be an element within the document, as Streamlit's is.
_CONTENT_HEIGHT = "Math.max(...[...document.querySelectorAll('*')].map(node => node.scrollHeight))"


@contextmanager
def running(command: list[str] | None) -> Iterator[Callable[[], bool]]:
    """A server meanwhile, which is asked to end as by Ctrl-C; yields whether it is still going."""
    if command is None:
        yield lambda: True
        return
    process = subprocess.Popen(command)
    try:
        yield lambda: process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def chromium(program: str, wait: float) -> Iterator[int]:
    """The port at which a headless Chromium listens meanwhile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0")
        process = subprocess.Popen(
            [program, *options, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        place = Path(profile) / "DevToolsActivePort"
        try:
            until(lambda: place.exists() and place.read_text().count("\n"), wait, f"{program} does not start")
            yield int(place.read_text().split()[0])
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Tab:
    """A tab of Chromium, spoken to by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

    def __init__(self, port: int) -> None:
        from websockets.sync.client import connect

        with _DIRECT.open(f"http://127.0.0.1:{port}/json") as found:
            address = next(target["webSocketDebuggerUrl"] for target in json.load(found) if target["type"] == "page")
        self._connection, self._number = connect(address, max_size=None, proxy=None), 0

    def __enter__(self) -> Tab:
        self._socket = self._connection.__enter__()
        return self

    def __exit__(self, *what: Any) -> None:
        self._connection.__exit__(*what)

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method of the protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(60))
            if answer.get("id") == self._number:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; None where it fails."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return None if "exceptionDetails" in done else done["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """Gives the window another size, px."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )


def with_palette(png: bytes) -> bytes:
    """A PNG in 256 colours, which are chosen so that small marks keep theirs."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        full = image.convert("RGB")
    palette = full.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    full.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(out, "PNG", optimize=True)
    return out.getvalue()


def answers(url: str) -> bool:
    """Whether something answers there."""
    try:
        with _DIRECT.open(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def until(holds: Callable[[], Any], wait: float, otherwise: str) -> None:
    """Waits until something holds; ends the program with a line where it does not within so many seconds."""
    end = time.monotonic() + wait
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"{otherwise} within {wait:g} s")
        time.sleep(_STEP_S)


if __name__ == "__main__":
    main()
