"""Publication with the Hub's client to a stand-in for its server: commits, resumed uploads, errors of one line."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import OWNER, TOKEN, Hub, Repository, connect_client, hub_server
from huggingface_hub import constants
from programs import free_port

from vggrepro.errors import UserError
from vggrepro.storage.hub import CARD, CONFIG, WEIGHTS, Publication, read_repository, repository_of, upload, weight_file

NAME = f"{OWNER}/net"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        connect_client(hub, tmp_path / "cache", monkeypatch)
        yield hub


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {WEIGHTS: b"weights" * 100_000, "ranks.npz": b"ranks" * 99, CONFIG: b"{}", CARD: b"# net\n"}
    paths = {}
    for name, content in contents.items():
        paths[name] = tmp_path / "files" / name
        paths[name].parent.mkdir(exist_ok=True)
        paths[name].write_bytes(content)
    return paths


def sent(files: dict[str, Path], existing: Publication = Publication(), **changes: object) -> str:  # noqa: B008
    return upload(NAME, files, existing, **{"private": False, "removed": (), "message": "a net"} | changes)  # type: ignore[arg-type]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_repositories_are_distinguished_from_paths() -> None:
    assert repository_of("hf:me/net-1.x") == "me/net-1.x"
    assert repository_of("runs/out") is None
    assert repository_of(Path("hf/net")) is None
    for wrong in ("hf:net", "hf:me/net/x", "hf:", "hf:me/", "https://huggingface.co/me/net", "hf-hub:me/net"):
        with pytest.raises(UserError, match=re.escape(f"{wrong} is not a repository of the Hub; write hf:owner/name")):
            repository_of(wrong)


def test_the_first_commit_has_all_files_and_the_second_the_changes(hub: Hub, files: dict[str, Path]) -> None:
    assert read_repository(NAME, private=True) == Publication()
    assert sent(files, private=True) == f"{hub.address}/{NAME}"
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.commits == ["a net"]
    content = {name: file.read_bytes() for name, file in files.items()}
    assert {name: repository.files[name] for name in files} == content
    existing = read_repository(NAME, private=True)
    assert (existing.files - {".gitattributes"}, existing.config, existing.card) == (files.keys(), b"{}", b"# net\n")
    files[CARD].write_bytes(b"# better\n")
    sent({CARD: files[CARD], WEIGHTS: files[WEIGHTS]}, existing, removed=["ranks.npz"])
    assert (repository.files[CARD], "ranks.npz" in repository.files) == (b"# better\n", False)
    assert len(repository.commits) == 2
    assert hub.stored.count(sha256(files[WEIGHTS])) == 1, "the server has it already"


def test_an_interrupted_upload_resumes(hub: Hub, files: dict[str, Path]) -> None:
    hub.drops_above = 10_000
    with pytest.raises(UserError, match="run the same command again to resume") as caught:
        sent(files)
    assert str(caught.value).startswith(f"hf:{NAME}: the connection to {hub.address} failed (")
    assert hub.stored == [sha256(files["ranks.npz"])], "the file that was sent"
    assert hub.repositories[NAME].commits == [], "there is no commit yet"
    assert sum(path == f"/lfs/{sha256(files[WEIGHTS])}" for _, path in hub.requests) == 6, "the client tries six times"
    hub.drops_above, hub.stored = None, []
    sent(files)
    assert hub.stored == [sha256(files[WEIGHTS])], "only the missing file is sent"
    assert hub.repositories[NAME].files[WEIGHTS] == files[WEIGHTS].read_bytes()


def test_a_concurrent_commit_is_not_overwritten(hub: Hub, files: dict[str, Path]) -> None:
    sent(files)
    existing = read_repository(NAME, private=False)
    hub.repositories[NAME].commits.append("somebody else's")
    files[CARD].write_bytes(b"# better\n")
    with pytest.raises(UserError, match=r"has changed since it was read \(A commit has happened since.*\); run"):
        sent(files, existing)
    assert hub.repositories[NAME].files[CARD] == b"# net\n"


@pytest.mark.parametrize(
    ("owner", "token", "line"),
    [
        (OWNER, "hf_wrong", r"the token is missing or invalid \(Invalid credentials.*\); log in with `hf auth login`"),
        (OWNER, "", r"the token is missing or invalid \(Invalid username.*\); log in with `hf auth login`"),
        (
            "google",
            TOKEN,
            r"the token has no write access \(You don't have the rights.*\); choose a repository that you own",
        ),
    ],
)
def test_errors_of_authorisation_are_one_line(
    hub: Hub, files: dict[str, Path], owner: str, token: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    name = f"{owner}/net"
    with pytest.raises(UserError, match=line) as caught:
        upload(name, files, read_repository(name, private=False), private=False, removed=(), message="a net")
    assert str(caught.value).startswith(f"hf:{name}: ")
    assert hub.repositories == {}


def test_the_repository_of_another_owner_is_unchanged(hub: Hub, files: dict[str, Path]) -> None:
    hub.repositories["google/net"] = Repository(files={"README.md": b"theirs"})
    existing = read_repository("google/net", private=False)
    with pytest.raises(UserError, match=r"hf:google/net: the token has no write access"):
        upload("google/net", files, existing, private=False, removed=(), message="a net")
    assert hub.repositories["google/net"].files == {"README.md": b"theirs"}


def test_a_full_server_and_an_existing_public_repository_are_errors(hub: Hub, files: dict[str, Path]) -> None:
    hub.full = True
    with pytest.raises(UserError, match=r"the Hub responds with status 507 \(storage is full\); run the same"):
        sent(files)
    with pytest.raises(UserError, match=f"--private: hf:{NAME} exists and is public"):
        read_repository(NAME, private=True)


def test_no_network_is_one_line(tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Hub(f"http://127.0.0.1:{free_port()}")
    connect_client(absent, tmp_path / "cache", monkeypatch)
    line = rf"hf:{NAME}: the connection to {absent.address} failed \(.*refused.*\); check the network or HF_ENDPOINT"
    for call in (lambda: read_repository(NAME, private=False), lambda: sent(files), lambda: weight_file(f"hf:{NAME}")):
        with pytest.raises(UserError, match=line):
            call()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        weight_file(f"hf:{NAME}")


def test_weights_are_downloaded_to_the_cache_once(hub: Hub, files: dict[str, Path], tmp_path: Path) -> None:
    sent(files)
    first = weight_file(f"hf:{NAME}")
    assert first.read_bytes() == files[WEIGHTS].read_bytes()
    assert first.is_relative_to(tmp_path / "cache")
    hub.requests.clear()
    assert weight_file(f"hf:{NAME}@main") == first
    assert {method for method, _ in hub.requests} == {"HEAD"}, "the file is not sent again"
    del hub.repositories[NAME].files[WEIGHTS]
    hub.repositories[NAME].commits.append("without")
    with pytest.raises(UserError, match=rf"hf:{NAME}: the repository has no {WEIGHTS}"):
        weight_file(f"hf:{NAME}")
    with pytest.raises(UserError, match="hf:me/nothing: the repository does not exist, or is private or gated"):
        weight_file("hf:me/nothing")


def test_other_paths_are_returned_unchanged(files: dict[str, Path], tmp_path: Path) -> None:
    folder = files[WEIGHTS].parent
    assert weight_file(folder) == files[WEIGHTS]
    assert weight_file(tmp_path) == tmp_path
    (folder / "config.yaml").touch()
    assert weight_file(folder) == folder, "a run directory"


def test_a_missing_client_is_an_error_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=re.escape("the Hub needs huggingface_hub: `pip install 'vggrepro[hub]'`")):
        weight_file("hf:me/net")
