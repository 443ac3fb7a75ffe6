"""`vggrepro show`: what it cannot show is one line before anything is served, and it serves this machine only."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from programs import Command, free_port
from tiny import REPOSITORY, tiny_graph

from vggrepro.show import server
from vggrepro.storage.checkpoint import Checkpoint, save
from vggrepro.storage.directory import RunDirectory


def test_a_port_in_use(command: Command, shown_run: RunDirectory) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = command.mistake("show", shown_run.path, "--port", port, "--no-browser")
    assert re.search(rf"--port {port} cannot be used \(Address already in use\); choose another one", line)


def test_without_streamlit(command: Command, shown_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "streamlit", None)
    line = command.mistake("show", shown_run.path)
    assert "`vggrepro show` needs streamlit" in line
    assert "pip install 'vggrepro[show]'" in line


def test_what_is_no_trained_net_of_classes(command: Command, tmp_path: Path, images: Path) -> None:
    def mistake(source: object) -> str:
        return command.mistake("show", source, "--port", free_port(), "--no-browser")

    assert f"{tmp_path} is not a run directory (it has no config.yaml)" in mistake(tmp_path)
    assert "nowhere.pt cannot be read (No such file or directory)" in mistake(tmp_path / "nowhere.pt")
    graph = tiny_graph("reduced/localisation_digits.yaml", images, tmp_path / "runs")
    boxes = next(stage for stage in graph.stages.values() if stage.localisation)
    run = RunDirectory(boxes.directory)
    run.write_text("config.yaml", boxes.to_yaml())
    assert f"{run.path} is not finished (no final.pt)" in mistake(run.path)
    save(Checkpoint(boxes.model_dump(mode="json"), 1, {}, {}, {}), run.checkpoints / "final.pt")
    assert f"{run.path} predicts boxes, not classes; name the net it was trained from" in mistake(run.path)


def test_it_serves_this_machine_only_and_reports_nothing(
    command: Command, shown_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlit import config
    from streamlit.web import bootstrap

    before = {name: config.get_option(name) for name in [*server._OPTIONS, "server.port"]}
    port, called = free_port(), []
    monkeypatch.setattr(bootstrap, "run", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(server, "_answers", lambda address: False)
    try:
        status, out, err = command("show", shown_run.path, "--port", port, "--no-browser")
        assert (status, out) == (0, ""), err
        ((script, _, arguments, _),) = called
        assert Path(script) == REPOSITORY / "vggrepro" / "show" / "page.py"
        assert arguments == [str(shown_run.path)]
        assert config.get_option("server.address") == "127.0.0.1"
        assert config.get_option("server.port") == port
        assert config.get_option("browser.gatherUsageStats") is False
        assert config.get_option("server.headless") is True, "else it asks for an e-mail address"
    finally:
        for name, option in before.items():
            config.set_option(name, option)


@pytest.mark.slow
def test_it_prints_its_address_once_and_ends_quietly(shown_run: RunDirectory) -> None:
    port = free_port()
    words = [sys.executable, "-m", "vggrepro", "show", str(shown_run.path), "--no-browser", "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line == f"{shown_run.path}: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert b"streamlit" in page.read().lower()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (0, "", "")
