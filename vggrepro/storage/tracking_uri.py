"""Tracking URI of MLflow, and the command that shows its runs."""

import os
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

from vggrepro.errors import UserError


def resolve_uri(configured: str | None, runs_root: Path) -> str:
    """Returns the configured tracking URI, else MLFLOW_TRACKING_URI, else a SQLite database in ``runs_root``.

    Raises UserError for an invalid URI, and for a folder, which MLflow no longer supports since 3.13.
    """
    database = f"sqlite:///{runs_root.absolute() / 'mlruns.db'}"
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or database
    source = "the tracking URI" if configured else "MLFLOW_TRACKING_URI"
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{source} {uri!r} is not a URL ({error}); correct it") from None
    if parts.scheme in ("", "file"):
        remedy = f"use {database} or the http:// URL of a server"
        raise UserError(f"{source} {uri!r} is a folder, which MLflow no longer supports; {remedy}")
    return uri


def ui_command(uri: str) -> str:
    """Returns the URL of a server, or the command that shows a database on 127.0.0.1:5000."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    mlflow = Path(sys.executable).parent / "mlflow"
    if mlflow.is_relative_to(Path.cwd()):
        mlflow = mlflow.relative_to(Path.cwd())
    return shlex.join([str(mlflow), "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", "5000"])
