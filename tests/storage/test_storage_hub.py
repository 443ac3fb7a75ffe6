"""The Hub's client against a stand-in of its HTTP interface: one commit, resumed uploads, refusals in one line."""

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
    made = {}
    for name, content in contents.items():
        made[name] = tmp_path / "files" / name
        made[name].parent.mkdir(exist_ok=True)
        made[name].write_bytes(content)
    return made


def sent(files: dict[str, Path], existing: Publication = Publication(), **changes: object) -> str:  # noqa: B008
    return upload(NAME, files, existing, **{"private": False, "removed": (), "message": "a net"} | changes)  # type: ignore[arg-type]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_places_are_told_apart() -> None:
    assert repository_of("hf:me/net-1.x") == "me/net-1.x"
    assert repository_of("runs/out") is None
    assert repository_of(Path("hf/net")) is None
    for wrong in ("hf:net", "hf:me/net/x", "hf:", "hf:me/", "https://huggingface.co/me/net", "hf-hub:me/net"):
        with pytest.raises(UserError, match=re.escape(f"{wrong}: a repository of the Hub is written as hf:owner/name")):
            repository_of(wrong)


def test_one_commit_has_all_files_and_a_second_has_what_changed(hub: Hub, files: dict[str, Path]) -> None:
    assert read_repository(NAME, private=True) == Publication()
    assert sent(files, private=True) == f"{hub.address}/{NAME}"
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.commits == ["a net"]
    assert {name: repository.files[name] for name in files} == {name: one.read_bytes() for name, one in files.items()}
    existing = read_repository(NAME, private=True)
    assert (existing.files - {".gitattributes"}, existing.config, existing.card) == (files.keys(), b"{}", b"# net\n")
    files[CARD].write_bytes(b"# better\n")
    (del_ranks,) = (name for name in files if name == "ranks.npz")
    sent({CARD: files[CARD], WEIGHTS: files[WEIGHTS]}, existing, removed=[del_ranks])
    assert (repository.files[CARD], del_ranks in repository.files) == (b"# better\n", False)
    assert len(repository.commits) == 2
    assert hub.stored.count(sha256(files[WEIGHTS])) == 1, "which the server has"


def test_half_an_upload_goes_on_where_it_stopped(hub: Hub, files: dict[str, Path]) -> None:
    hub.drops_above = 10_000
    with pytest.raises(UserError, match="the same command goes on where it stopped") as caught:
        sent(files)
    assert str(caught.value).startswith(f"hf:{NAME}: the connection to {hub.address} failed (")
    assert hub.stored == [sha256(files["ranks.npz"])], "what came through"
    assert hub.repositories[NAME].commits == [], "and nothing of it is seen"
    assert sum(path == f"/lfs/{sha256(files[WEIGHTS])}" for _, path in hub.requests) == 6, "the client tries six times"
    hub.drops_above, hub.stored = None, []
    sent(files)
    assert hub.stored == [sha256(files[WEIGHTS])], "only what was missing"
    assert hub.repositories[NAME].files[WEIGHTS] == files[WEIGHTS].read_bytes()


def test_another_commit_meanwhile_is_not_overwritten(hub: Hub, files: dict[str, Path]) -> None:
    sent(files)
    existing = read_repository(NAME, private=False)
    hub.repositories[NAME].commits.append("somebody else's")
    files[CARD].write_bytes(b"# better\n")
    with pytest.raises(UserError, match=r"has changed meanwhile \(A commit has happened since.*\); run the same"):
        sent(files, existing)
    assert hub.repositories[NAME].files[CARD] == b"# net\n"


@pytest.mark.parametrize(
    ("owner", "token", "line"),
    [
        (
            OWNER,
            "hf_wrong",
            r"does not know the token, or has none \(Invalid credentials.*\); log in with `hf auth login`",
        ),
        (OWNER, "", r"does not know the token, or has none \(Invalid username.*\); log in with `hf auth login`"),
        (
            "google",
            TOKEN,
            r"must not write there \(You don't have the rights.*\); choose an owner and name of your own",
        ),
    ],
)
def test_refusals_are_one_line(
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


def test_a_repository_of_others_that_is_there(hub: Hub, files: dict[str, Path]) -> None:
    hub.repositories["google/net"] = Repository(files={"README.md": b"theirs"})
    existing = read_repository("google/net", private=False)
    with pytest.raises(UserError, match=r"hf:google/net: the token must not write there"):
        upload("google/net", files, existing, private=False, removed=(), message="a net")
    assert hub.repositories["google/net"].files == {"README.md": b"theirs"}


def test_the_server_has_no_room_and_a_public_repository_is_not_private(hub: Hub, files: dict[str, Path]) -> None:
    hub.full = True
    with pytest.raises(UserError, match=r"the Hub answers 507 \(storage is full\); later, the same command goes on"):
        sent(files)
    with pytest.raises(UserError, match=f"--private: hf:{NAME} is there and public"):
        read_repository(NAME, private=True)


def test_no_network_is_one_line(tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Hub(f"http://127.0.0.1:{free_port()}")
    connect_client(nobody, tmp_path / "cache", monkeypatch)
    line = rf"hf:{NAME}: the connection to {nobody.address} failed \(.*refused.*\); see to the network or HF_ENDPOINT"
    for call in (lambda: read_repository(NAME, private=False), lambda: sent(files), lambda: weight_file(f"hf:{NAME}")):
        with pytest.raises(UserError, match=line):
            call()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        weight_file(f"hf:{NAME}")


def test_weights_come_into_the_cache_and_stay_there(hub: Hub, files: dict[str, Path], tmp_path: Path) -> None:
    sent(files)
    first = weight_file(f"hf:{NAME}")
    assert first.read_bytes() == files[WEIGHTS].read_bytes()
    assert first.is_relative_to(tmp_path / "cache")
    hub.requests.clear()
    assert weight_file(f"hf:{NAME}@main") == first
    assert {method for method, _ in hub.requests} == {"HEAD"}, "nothing is sent twice"
    del hub.repositories[NAME].files[WEIGHTS]
    hub.repositories[NAME].commits.append("without")
    with pytest.raises(UserError, match=rf"hf:{NAME}: the repository holds no {WEIGHTS}"):
        weight_file(f"hf:{NAME}")
    with pytest.raises(UserError, match="hf:me/nothing: there is no such repository, or it is private or gated"):
        weight_file("hf:me/nothing")


def test_other_places_stay_as_they_are(files: dict[str, Path], tmp_path: Path) -> None:
    folder = files[WEIGHTS].parent
    assert weight_file(folder) == files[WEIGHTS]
    assert weight_file(tmp_path) == tmp_path
    (folder / "config.yaml").touch()
    assert weight_file(folder) == folder, "a run directory"


def test_without_the_package_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=re.escape("the Hub needs huggingface_hub: `pip install 'vggrepro[hub]'`")):
        weight_file("hf:me/net")
