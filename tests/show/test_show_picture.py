"""The picture of the page in the documentation, and what takes such pictures."""

import shutil
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image
from programs import free_port, run_program
from tiny import REPOSITORY


def test_the_picture_in_the_documentation_is_small() -> None:
    assert (REPOSITORY / "docs" / "img" / "show.png").stat().st_size < 250_000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium here")
def test_pictures_are_taken_when_the_page_is_ready_and_its_server_ends(tmp_path: Path) -> None:
    """A page that is ready half a second after it is loaded, and turns red at a click."""
    script = "setTimeout(() => document.body.append(Object.assign(document.createElement('p'), {id: 'late'})), 500)"
    click = "onclick=\"document.body.style.background='red'\""
    (tmp_path / "index.html").write_text(f"<body><b {click}></b><script>{script}</script></body>")
    port, picture = free_port(), tmp_path / "picture.png"
    words = ["--size", "320x200", "--until", "document.querySelector('#late')", "--settle", "0.3"]
    words += ["--server", f"{sys.executable} -m http.server {port} --bind 127.0.0.1 --directory {tmp_path}"]
    make, url = REPOSITORY / "docs" / "img" / "make.py", f"http://127.0.0.1:{port}/"
    run_program(make, picture, url, *words, "--do", "document.querySelector('b').click()", check=True)
    with Image.open(picture) as image:
        assert image.size == (320, 200)
        assert image.convert("RGB").getpixel((160, 100)) == (255, 0, 0)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the server is still there"
    failed = run_program(make, picture, url, "--wait", "1")
    assert failed.returncode == 1
    assert failed.stderr == f"{url} does not answer within 1 s\n"
