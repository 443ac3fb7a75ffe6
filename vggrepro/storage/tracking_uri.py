"""Where MLflow keeps runs, and what shows them."""

import os
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

from vggrepro.errors import UserError


def resolve_uri(configured: str | None, runs_root: Path) -> str:
    """The tracking URI: the configured one, else MLFLOW_TRACKING_URI, else a SQLite database in ``runs_root``.

    Raises:
        UserError: the URI is a folder, which MLflow refuses since 3.13, or no address.
    """
    database = f"sqlite:///{runs_root.absolute() / 'mlruns.db'}"
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or database
    source = "the tracking URI" if configured else "MLFLOW_TRACKING_URI"
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{source} {uri!r} is no address ({error}); correct it") from None
    if parts.scheme in ("", "file"):
        remedy = f"use {database} or the http:// address of a server"
        raise UserError(f"{source} {uri!r} is a folder, which MLflow no longer takes; {remedy}")
    return uri


def ui_command(uri: str) -> str:
    """What shows the runs: for a server its address, for a database the command to paste, serving on 127.0.0.1:5000."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    mlflow = Path(sys.executable).parent / "mlflow"
    if mlflow.is_relative_to(Path.cwd()):
        mlflow = mlflow.relative_to(Path.cwd())
    return shlex.join([str(mlflow), "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", "5000"])
