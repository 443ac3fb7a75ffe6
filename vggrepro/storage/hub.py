"""Published nets: in a folder, or a repository of the Hugging Face Hub, by its own client (extra `hub`)."""

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
"""The files by which a published net is recognised; timm and the Hub fix their names."""

_NAME = r"hf:(?P<repository>[\w.-]+/[\w.-]+)"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"


@dataclass(frozen=True)
class Publication:
    """What a place of publication holds."""

    files: frozenset[str] = frozenset()
    config: bytes | None = None
    """Content of its `config.json`."""
    card: bytes | None = None
    """Content of its `README.md`."""
    commit: str | None = None
    """Of the Hub's repository; None where there is none yet."""


def repository_of(place: str | Path) -> str | None:
    """The repository that `hf:owner/name` names; None for a folder or file.

    Raises:
        UserError: `hf:` with anything else than owner/name after it, or an address.
    """
    text = str(place)
    found = re.fullmatch(_NAME, text)
    if found:
        return found["repository"]
    if text.startswith(("hf:", "hf-hub:")) or re.match(r"\w+:/", text):
        raise UserError(f"{text}: a repository of the Hub is written as hf:owner/name")
    return None


def weight_file(source: str | Path) -> Path:
    """The weight file of a published net, of the Hub (`hf:owner/name`, `hf:owner/name@revision`) or a folder.

    The Hub's files come into its client's cache. Any other place is returned as it is.

    Raises:
        UserError: there is no such repository, or none that may be read, it holds no weights, or there is no network.
    """
    name, _, revision = str(source).partition("@")
    if str(source).startswith("hf") and (repository := repository_of(name)):
        with _client_for(f"hf:{repository}") as client:
            return Path(client.hf_hub_download(repository, WEIGHTS, revision=revision or None))
    folder = Path(source)
    published = (folder / WEIGHTS).is_file() and not (folder / "config.yaml").exists()  # which a run directory has
    return folder / WEIGHTS if published else folder


def read_repository(repository: str, *, private: bool) -> Publication:
    """What a repository holds; nothing where there is none yet.

    Raises:
        UserError: it cannot be read, or is public and `private` must not be.
    """
    name = f"hf:{repository}"
    with _client_for(name) as client:
        try:
            info = client.HfApi().model_info(repository)
        except client.errors.RepositoryNotFoundError:
            return Publication()
        if private and info.private is False:
            raise UserError(f"--private: {name} is there and public; change that in its settings, or leave it out")
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
    """Makes one commit of files, by name, in a repository, which is made where there is none; returns its address.

    What the server has by now is not sent again, so that the same call goes on where one before was interrupted.

    Args:
        repository: owner/name.
        files: what to write.
        existing: what the repository contained when it was looked at; a commit since then is an error.
        private: only its owner may read a new repository.
        removed: names of files to remove.
        message: the commit's.

    Raises:
        UserError: no network, no rights, a token that the Hub does not know, or another commit meanwhile.
    """
    with _client_for(f"hf:{repository}") as client:
        if existing.commit is None:
            client.HfApi().create_repo(repository, private=private or None, exist_ok=True)
        changes: list[Any] = [client.CommitOperationDelete(name) for name in removed]
        changes += [client.CommitOperationAdd(name, file) for name, file in files.items()]
        client.HfApi().create_commit(repository, changes, commit_message=message, parent_commit=existing.commit)
        return f"{client.constants.ENDPOINT}/{repository}"


def _client() -> Any:
    """The Hub's client. Raises UserError where it is missing."""
    try:
        import huggingface_hub  # which loads its modules when they are used
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UserError("the Hub needs huggingface_hub: `pip install 'vggrepro[hub]'`") from None
    return huggingface_hub


@contextmanager
def _client_for(name: str) -> Iterator[Any]:
    """The Hub's client, quiet: what it raises becomes one line. Raises UserError, also where it is missing."""
    client = _client()
    log, bars = logging.getLogger("huggingface_hub"), client.utils
    before = log.level
    log.setLevel(logging.ERROR)  # else each of its retries is a line
    hushed = not (sys.stderr.isatty() or bars.are_progress_bars_disabled())
    if hushed:
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
        log.setLevel(before)
        if hushed:
            bars.enable_progress_bars()


def _line_of(error: Exception, client: Any) -> str | None:
    """What the Hub's client met, for a reader, with the remedy; None for a full disk, say, or a mistake of ours."""
    answered = client.errors.HfHubHTTPError
    transport = answered.__mro__[1]  # of its HTTP library
    chain: list[BaseException] = [error]
    while earlier := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(earlier)
    for cause in chain:
        if isinstance(cause, answered):
            return _of_answer(cause)
        if isinstance(cause, client.errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to reach the Hub"
        if isinstance(cause, transport):
            return (
                f"the connection to {client.constants.ENDPOINT} failed ({reason_of(cause, 120)}); "
                f"see to the network or HF_ENDPOINT, then the same command goes on where it stopped"
            )
    if isinstance(error, OSError | RuntimeError | ValueError) and getattr(error, "errno", None) is None:
        return f"the Hub's client failed ({reason_of(error, 160)}); try again"
    return None


def _of_answer(error: Any) -> str:
    """A refusal of the Hub, for a reader, with the remedy."""
    status = error.response.status_code
    words = " ".join(str(error.server_message or error.response.headers.get("X-Error-Message") or "").split())[:160]
    remark = f" ({words})" if words else ""
    kind = type(error).__name__
    if kind == "RemoteEntryNotFoundError":
        return f"the repository holds no {WEIGHTS}{remark}; name one that `vggrepro publish` has made"
    if kind == "RevisionNotFoundError":
        return f"there is no such revision{remark}; name a branch, tag or commit after the @"
    if kind in ("RepositoryNotFoundError", "GatedRepoError"):
        return f"there is no such repository, or it is private or gated{remark}; see to the name, or {_LOG_IN}"
    if status == 401:
        return f"the Hub does not know the token, or has none{remark}; {_LOG_IN}"
    if status == 403:
        return f"the token must not write there{remark}; choose an owner and name of your own, or {_LOG_IN}"
    if status in (409, 412):
        return f"the repository has changed meanwhile{remark}; run the same command again"
    if status == 429 or status >= 500:
        return f"the Hub answers {status}{remark}; later, the same command goes on where it stopped"
    return f"the Hub answers {status}{remark}; see to the name and the rights of the token"
