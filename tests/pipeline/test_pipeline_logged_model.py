"""Logged nets without this package, loaded by `mlflow.pyfunc` and served over HTTP."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from nets import tiny_vgg
from PIL import Image
from programs import free_port

from vggrepro.config.settings import Config, Data, Model
from vggrepro.models.weights import PREPROCESSING
from vggrepro.pipeline.pretrained import load
from vggrepro.storage import checkpoint
from vggrepro.storage.checkpoint import Checkpoint
from vggrepro.storage.logged_model import write_model
from vggrepro.storage.mlflow_run import import_quietly

STRANGER = """
import json, sys
import numpy as np
import mlflow, mlflow.pyfunc
from mlflow.pyfunc.scoring_server import init
from starlette.testclient import TestClient

model, case = mlflow.pyfunc.load_model(sys.argv[1]), np.load(sys.argv[2])
import vggrepro
assert vggrepro.__file__.startswith(sys.argv[1]), vggrepro.__file__
client = TestClient(init(model))

def served(**body):
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["predictions"], np.float32)

images, files = case["images"], [str(text) for text in case["files"]]
found = {
    "uint8": model.predict(images),
    "float": model.predict(images.astype(np.float32)),
    "one Q": model.predict(images, params={"Q": [40]}),
    "served files": served(inputs=files),
    "served pixels": served(inputs=images.tolist()),
    "served at one Q": served(inputs=files, params={"Q": [40]}),
}
refused = client.post("/invocations", json={"inputs": ["no image"]})
found["status"] = np.array(refused.status_code)
np.savez(sys.argv[3], **found)
print(refused.text)
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model, three images and their posteriors."""
    folder = tmp_path_factory.mktemp("logged")
    config = Config(model=Model(net="D", classes=7, crop=32, width=0.0625), data=Data(S=40))
    described = {"classes": [f"class {number}" for number in range(7)], "data": "", "versions": {}, "parent": None}
    content = (config.model_dump(mode="json"), 0, tiny_vgg("D").state_dict(), PREPROCESSING["paper"], described)
    checkpoint.save(Checkpoint(*content), folder / "final.pt")
    import_quietly()
    write_model(folder / "model", folder / "final.pt")
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 44, 3), dtype=np.uint8)
    files = []
    for image in images:
        Image.fromarray(image).save(file := io.BytesIO(), "PNG")
        files.append(base64.b64encode(file.getvalue()).decode())
    net = load(folder / "final.pt")
    np.savez(
        folder / "case.npz",
        images=images,
        files=files,
        every=net.predict(list(images)),
        first=net.predict(images, [40]),
    )
    return folder


def compare(found: dict[str, np.ndarray], case: Path) -> dict[str, float]:
    """Returns the largest differences from the net's posteriors."""
    expected = np.load(case / "case.npz")
    results = {name: values for name, values in found.items() if name != "status"}
    return {
        name: float(np.abs(values - expected["first" if "one Q" in name else "every"]).max())
        for name, values in results.items()
    }


def test_a_net_is_loaded_and_served_without_this_package(case: Path, tmp_path: Path) -> None:
    """Runs a Python with MLflow, but without an installation or checkout of this package."""
    script, out = tmp_path / "stranger.py", tmp_path / "found.npz"
    script.write_text(STRANGER)
    done = subprocess.run(
        [sys.executable, "-S", script, case / "model", case / "case.npz", out],
        env=os.environ | {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(np.load(out))
    differences = compare(found, case)
    assert max(differences[name] for name in differences if name != "float") < 1e-6
    assert differences["float"] < 1e-2, "float images are not rounded between the filter's two passes"
    assert found["status"] == 400
    assert "image 0 cannot be decoded" in done.stdout


@pytest.mark.slow
def test_mlflow_serves_the_net_in_a_fresh_environment(case: Path, tmp_path: Path) -> None:
    """Runs `mlflow models serve` in an environment with only the model's requirements."""
    uv, python = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"), tmp_path / "env/bin"
    assert uv
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env"], check=True)
    requirements = case / "model" / "requirements.txt"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python / "python", "-r", requirements], check=True)
    absent = subprocess.run(
        [python / "python", "-c", "import vggrepro"], cwd=tmp_path, capture_output=True, check=False
    )
    assert absent.returncode == 1
    port = free_port()
    server = subprocess.Popen(
        [python / "mlflow", "models", "serve", "-m", case / "model", "-p", str(port), "--env-manager", "local"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{python}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "log").open("w"),
    )
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/ping").close()
                break
            except urllib.error.URLError:
                assert time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.5)
        body = json.dumps({"inputs": [str(text) for text in np.load(case / "case.npz")["files"]]}).encode()
        request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            found = np.array(json.load(answer)["predictions"], np.float32)
    finally:
        server.terminate()
        server.wait()
    assert compare({"served files": found}, case)["served files"] < 1e-6
