"""Stand-in for the Hugging Face Hub, with the part of its HTTP interface that publishing and reading nets need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

TOKEN, OWNER = "hf_good", "me"
_LFS = (".safetensors", ".npz")


@dataclass
class Repository:
    """Files by name, and its commits."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((sorted(self.files.items()), self.commits)).encode()).hexdigest()


@dataclass
class Hub:
    """State of the stand-in, and the requests that it received."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path."""
    stored: list[str] = field(default_factory=list)
    """SHA-256 of each large file that has arrived."""
    drops_above: int | None = None
    """Size in bytes above which it drops the connection half-way through a file."""
    changed: bool = False
    """Whether somebody else commits before each commit."""
    full: bool = False
    """Whether it responds to every commit with 507."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        self._answer(status, {"error": message}, X_Error_Message=message, **({"X_Error_Code": code} if code else {}))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if path.startswith("/lfs/"):
            return self._large_file(path.removeprefix("/lfs/"))
        body = self._body()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            return self._refuse(401, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        name = re.sub(r"^/(api/models/)?", "", path)
        owner, repository_name, *rest = name.split("/")
        name = f"{owner}/{repository_name.removesuffix('.git')}"
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and token != TOKEN):
            return self._refuse(404 if token else 401, "Repository not found", "RepoNotFound")
        if self.command == "POST" and (token != TOKEN or owner != OWNER):
            return self._refuse(403, "You don't have the rights to write here")
        if not path.startswith("/api/") and rest[0] == "resolve":
            return self._file(repository, "/".join(rest[2:]))
        if not rest or rest[0] == "revision":
            names = [{"rfilename": file} for file in repository.files]
            return self._answer(
                200, {"id": name, "sha": repository.sha, "private": repository.private, "siblings": names}
            )
        if rest[0] == "tree":
            return self._answer(200, [self._entry(*item) for item in repository.files.items()])
        if rest[0] == "preupload":
            return self._answer(200, {"files": [self._mode(repository, entry) for entry in json.loads(body)["files"]]})
        if rest[:2] == ["info", "lfs"]:
            return self._answer(200, {"objects": [self._action(entry) for entry in json.loads(body)["objects"]]})
        if rest[0] == "commit":
            return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        return self._refuse(501, f"not here: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _create(self, words: dict[str, Any], token: str) -> None:
        if token != TOKEN:
            return self._refuse(401, "Invalid username or password.")
        name = f"{words['organization']}/{words['name']}"
        if words["organization"] != OWNER:
            return self._refuse(403, "You don't have the rights to create a model under this namespace")
        if name in self.hub.repositories:
            return self._answer(
                409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}
            )
        self.hub.repositories[name] = Repository(words.get("visibility") == "private", {".gitattributes": b""})
        return self._answer(200, {"url": f"{self.hub.address}/{name}"})

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _mode(self, repository: Repository, entry: dict[str, Any]) -> dict[str, Any]:
        large, content = entry["path"].endswith(_LFS), repository.files.get(entry["path"])
        oid = None
        if content is not None:
            blob = b"blob %d\0" % len(content) + content
            oid = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(blob).hexdigest()
        mode = "lfs" if large else "regular"
        return {"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _action(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["oid"] in self.hub.blobs:
            return entry
        return entry | {"actions": {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}"}}}

    def _large_file(self, oid: str) -> None:
        size = int(self.headers["Content-Length"])
        if self.hub.drops_above is not None and size > self.hub.drops_above:
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.close()
            return
        content = self.rfile.read(size)
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.blobs[oid] = content
        self.hub.stored.append(oid)
        self._answer(200, {})

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        head = lines[0]["value"]
        if self.hub.full:
            return self._refuse(507, "storage is full")
        if self.hub.changed or head.get("parentCommit") not in (None, repository.sha):
            return self._refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        repository.files = files
        repository.commits.append(head["summary"])
        address = f"{self.hub.address}/{name}/commit/{repository.sha}"
        return self._answer(200, {"commitUrl": address, "commitOid": repository.sha, "success": True})

    def _file(self, repository: Repository, name: str) -> None:
        if name not in repository.files:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        content = repository.files[name]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._answer(200, content, X_Repo_Commit=repository.sha, ETag=etag)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Runs the stand-in on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        server.server_close()
        thread.join()


def use(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, *, token: str = TOKEN) -> None:
    """Connects the Hub's client of this process to the stand-in with a separate cache, and removes pauses."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
