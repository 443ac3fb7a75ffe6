"""How far MLflow has followed a run, `mlflow.json` in its directory, and what keeps it from following any further."""

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from textwrap import shorten
from typing import Self

from vggrepro.errors import UserError
from vggrepro.storage.directory import RunDirectory

_FILE = "mlflow.json"
_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what may write there"
_REMEDIES = {
    **dict.fromkeys(("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"), _LOGIN),
    **dict.fromkeys(("ENDPOINT_NOT_FOUND", "file is not a database"), "correct tracking.uri"),
    "out-of-date database schema": "use the MLflow that made the database, or set tracking.uri to another one",
    **dict.fromkeys(
        ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"), "mend it there, then start again"
    ),
}
"""Of what no waiting mends: by MLflow's error code, or words of its message."""


@dataclass
class Progress:
    """How far MLflow has followed ``metrics.jsonl``.

    The checksum tells whether the file was rewound since. MLflow cannot delete points, and the trajectory is
    deterministic, so after a rewind the steps up to those it already has (``had``) are left out.
    """

    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str = ""
    bytes: int = 0
    crc32: int = 0
    last_step: dict[str, int] = field(default_factory=dict)
    had: dict[str, int] = field(default_factory=dict)
    ended: str = ""
    """The status that MLflow has of the run since all of it was copied; empty while there is more to come."""

    @classmethod
    def of(cls, run: RunDirectory) -> Self:
        """As its directory has it; a new one where nothing was copied. Raises UserError for a torn file."""
        return cls(**(run.read_json(_FILE) or {}))

    def save(self, run: RunDirectory) -> None:
        """Keeps it in the run's directory."""
        run.write_json(_FILE, asdict(self))


def is_behind(run: RunDirectory) -> bool:
    """Whether MLflow lacks something of a finished run, as when its server was down at the end of it."""
    progress = Progress.of(run)
    return progress.ended != "FINISHED" or (run.metrics.exists() and run.metrics.stat().st_size > progress.bytes)


def refusal_of(error: Exception, text: str) -> str | None:
    """Why MLflow will not take a run however often it is asked, with the remedy; None where it may yet.

    `text` is the error's, on one line.
    """
    if isinstance(error, UserError):
        return text
    signs = f"{getattr(error, 'error_code', '')} {text}"
    remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in signs), None)
    return remedy and f"{shorten(text, 200, placeholder=' ...')}; {remedy}"


@contextmanager
def alone(run: RunDirectory) -> Iterator[None]:
    """One at a time may look for the MLflow run of a directory and create it.

    Else a mirror that was given up in the middle of a slow server's answer and the next one would make one each, as
    would two jobs that both copy what MLflow missed of a third.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / ".mlflow.lock").open("w") as lock:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
