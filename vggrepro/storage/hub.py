"""Published nets in a folder or a repository of the Hugging Face Hub, through its client (extra `hub`)."""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vggrepro.errors import UserError, reason_of

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""Files of a published net; timm and the Hub require these names."""

_NAME = r"hf:(?P<repository>[\w.-]+/[\w.-]+)"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


@dataclass(frozen=True)
class Publication:
    """Content of a published folder or repository."""

    files: frozenset[str] = frozenset()
    config: bytes | None = None
    """Content of `config.json`."""
    card: bytes | None = None
    """Content of `README.md`."""
    commit: str | None = None
    """Commit of the repository; None if it does not exist, or is a folder."""


def repository_of(place: str | Path) -> str | None:
    """Parses `hf:owner/name`; returns None for a folder or file. Raises UserError for other names and URLs."""
    text = str(place)
    if match := re.fullmatch(_NAME, text):
        return match["repository"]
    if text.startswith(("hf:", "hf-hub:")) or re.match(r"\w+:/", text):
        raise UserError(f"{text} is not a repository of the Hub; write hf:owner/name")
    return None


def weight_file(source: str | Path) -> Path:
    """Finds the weight file of a net published in a folder or on the Hub (`hf:owner/name`, `hf:owner/name@revision`).

    The Hub's client downloads files to its cache. Any other path is returned unchanged. Raises UserError.
    """
    name, _, revision = str(source).partition("@")
    if str(source).startswith("hf") and (repository := repository_of(name)):
        with _client_for(f"hf:{repository}") as client:
            return Path(client.hf_hub_download(repository, WEIGHTS, revision=revision or None))
    folder = Path(source)
    published = (folder / WEIGHTS).is_file() and not (folder / "config.yaml").exists()  # run directories have one
    return folder / WEIGHTS if published else folder


def read_repository(repository: str, *, private: bool) -> Publication:
    """Reads a repository, if it exists. Raises UserError if it cannot be read, or is public despite `private`."""
    name = f"hf:{repository}"
    with _client_for(name) as client:
        try:
            info = client.HfApi().model_info(repository)
        except client.errors.RepositoryNotFoundError:
            return Publication()
        if private and info.private is False:
            raise UserError(f"--private: {name} exists and is public; change its settings, or omit --private")
        files = frozenset(file.rfilename for file in info.siblings or ())
        with TemporaryDirectory(prefix="vggrepro-hub-") as folder:
            config, card = (
                Path(client.hf_hub_download(repository, file, revision=info.sha, local_dir=folder)).read_bytes()
                if file in files
                else None
                for file in (CONFIG, CARD)
            )
        return Publication(files, config, card, info.sha)


def upload(
    repository: str,
    files: Mapping[str, Path],
    existing: Publication,
    *,
    private: bool,
    removed: Sequence[str],
    message: str,
) -> str:
    """Commits files, by name, to a new or existing repository; returns its URL. A repeated call resumes the upload.

    Raises UserError, also if another commit has followed `existing`, the content that was read before.
    """
    with _client_for(f"hf:{repository}") as client:
        if existing.commit is None:
            client.HfApi().create_repo(repository, private=private or None, exist_ok=True)
        changes: list[Any] = [client.CommitOperationDelete(name) for name in removed]
        changes += [client.CommitOperationAdd(name, file) for name, file in files.items()]
        client.HfApi().create_commit(repository, changes, commit_message=message, parent_commit=existing.commit)
        return f"{client.constants.ENDPOINT}/{repository}"


@contextmanager
def _client_for(name: str) -> Iterator[Any]:
    """Imports the Hub's client and silences it; its errors become a UserError with one line."""
    try:
        import huggingface_hub as client  # loads its modules lazily
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils as bars
    except ImportError:
        raise UserError("the Hub needs huggingface_hub: `pip install 'vggrepro[hub]'`") from None
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # otherwise the client prints a line per retry
    hide_bars = not (sys.stderr.isatty() or bars.are_progress_bars_disabled())
    if hide_bars:
        bars.disable_progress_bars()
    try:
        yield client
    except UserError:
        raise
    except Exception as error:
        line = _line_of(error, client)
        if line is None:
            raise
        raise UserError(f"{name}: {line}") from None
    finally:
        log.setLevel(level)
        if hide_bars:
            bars.enable_progress_bars()


def _line_of(error: Exception, client: Any) -> str | None:
    """Describes an error of the Hub's client with its remedy; None for others, such as a full disk or a bug."""
    http_error = client.errors.HfHubHTTPError
    transport = http_error.__mro__[1]  # error of its HTTP library
    chain: list[BaseException] = [error]
    while earlier := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(earlier)
    for cause in chain:
        if isinstance(cause, http_error):
            return _describe_response(cause)
        if isinstance(cause, client.errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to reach the Hub"
        if isinstance(cause, transport):
            return (
                f"the connection to {client.constants.ENDPOINT} failed ({reason_of(cause, 120)}); "
                f"check the network or HF_ENDPOINT, then run the same command again to resume"
            )
    if isinstance(error, OSError | RuntimeError | ValueError) and getattr(error, "errno", None) is None:
        return f"the Hub's client failed ({reason_of(error, 160)}); try again"
    return None


def _describe_response(error: Any) -> str:
    status = error.response.status_code
    words = " ".join(str(error.server_message or error.response.headers.get("X-Error-Message") or "").split())[:160]
    remark = f" ({words})" if words else ""
    kind = type(error).__name__
    if kind == "RemoteEntryNotFoundError":
        return f"the repository has no {WEIGHTS}{remark}; name one that `vggrepro publish` wrote"
    if kind == "RevisionNotFoundError":
        return f"the revision does not exist{remark}; name a branch, tag or commit after the @"
    if kind in ("RepositoryNotFoundError", "GatedRepoError"):
        return f"the repository does not exist, or is private or gated{remark}; check the name, or {_LOG_IN}"
    if status == 401:
        return f"the token is missing or invalid{remark}; {_LOG_IN}"
    if status == 403:
        return f"the token has no write access{remark}; choose a repository that you own, or {_LOG_IN}"
    if status in (409, 412):
        return f"the repository has changed since it was read{remark}; run the same command again"
    if status == 429 or status >= 500:
        return f"the Hub responds with status {status}{remark}; run the same command again later to resume"
    return f"the Hub responds with status {status}{remark}; check the name and the rights of the token"
