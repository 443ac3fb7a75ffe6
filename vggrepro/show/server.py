"""Server of the page: Streamlit's, on this machine only, until it is interrupted."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

from vggrepro.errors import UserError, reason_of

ADDRESS = "127.0.0.1"
_OPTIONS = {
    "server.address": ADDRESS,
    "server.headless": True,  # otherwise it asks for an e-mail address and opens a browser itself
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 64,  # MB
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "logger.level": "error",
}
_PATIENCE_S = 60.0


def require_streamlit() -> None:
    """Raises UserError if Streamlit is missing."""
    try:
        import streamlit  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"`vggrepro show` needs streamlit, which cannot be imported ({reason_of(error)}); "
            f"pip install 'vggrepro[show]'"
        ) from None


def require_free(port: int) -> None:
    """Raises UserError if a port is not available."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or reason_of(error)
            raise UserError(f"--port {port} cannot be used ({reason}); choose another one, --port 8502, say") from None


def serve(source: str, port: int, *, browser: bool) -> None:
    """Serves the page of a net until SIGINT or SIGTERM; prints its address once it answers."""
    from streamlit.web import bootstrap

    options = {name.replace(".", "_"): option for name, option in (_OPTIONS | {"server.port": port}).items()}
    bootstrap.load_config_options(options)
    address, output = f"http://{ADDRESS}:{port}", sys.stdout

    def announce() -> None:
        if _answers(address):
            print(f"{source}: {address} (Ctrl-C ends it)", file=output, flush=True)
            if browser:
                webbrowser.open(address)

    threading.Thread(target=announce, daemon=True).start()
    with contextlib.redirect_stdout(io.StringIO()):  # its banner
        bootstrap.run(str(Path(__file__).with_name("page.py")), False, [source], options)


def _answers(address: str) -> bool:
    """Whether the server answers within a minute."""
    until = time.monotonic() + _PATIENCE_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < until:
        try:
            with direct.open(f"{address}/_stcore/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False
