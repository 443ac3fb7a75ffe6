"""`torch.hub.load` from a checkout, and what it gives."""

import shutil
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import tiny_vgg
from programs import run_program
from tiny import REPOSITORY

import vggrepro
from vggrepro.models.weights import PREPROCESSING, write
from vggrepro.paper import facts

GEOMETRY: dict[str, Any] = {"classes": 7, "crop": 32, "width": 0.0625}
ENTRIES = {"A": "vgg_a", "A-LRN": "vgg_a_lrn", "B": "vgg_b", "C": "vgg_c", "D": "vgg_d", "E": "vgg_e"}


def from_hub(entry: str, *arguments: Any, **options: Any) -> Any:
    return torch.hub.load(str(REPOSITORY), entry, *arguments, source="local", **options)


def written(net: str, folder: Path) -> Path:
    file, preprocessing = folder / f"{net}.safetensors", PREPROCESSING["paper"]
    model = {"net": net, "batch_norm": False} | GEOMETRY
    write(file, tiny_vgg(net).state_dict(), model=model, preprocessing=preprocessing, classes=None)
    return file


def test_the_six_nets_are_listed_and_explained() -> None:
    """Lists entries like torch.hub.list and help, which support no local source: callables without an underscore."""
    hubconf = SourceFileLoader("hubconf", str(REPOSITORY / "hubconf.py")).load_module()
    listed = [name for name, entry in vars(hubconf).items() if callable(entry) and not name.startswith("_")]
    assert set(listed) == {*ENTRIES.values(), "pretrained"}
    assert ENTRIES.keys() == facts().architectures.keys()
    assert all(getattr(hubconf, name).__doc__ for name in listed)
    assert all(find_spec(package) for package in hubconf.dependencies)


@pytest.mark.parametrize("net", ENTRIES)
def test_a_net_with_weights_equals_that_of_load(net: str, tmp_path: Path) -> None:
    file, images = written(net, tmp_path), torch.rand(2, 3, 32, 32) * 255
    found = from_hub(ENTRIES[net], weights=str(file))
    assert not found.training
    with torch.inference_mode():
        assert (found(images) - vggrepro.load(file).net(images)).abs().max() == 0
    pretrained = from_hub("pretrained", str(file))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 40, 44, 3), dtype=np.uint8)
    assert np.abs(pretrained.predict(pixels) - vggrepro.load(file).predict(pixels)).max() == 0


@pytest.mark.parametrize("net", ENTRIES)
def test_an_untrained_net_has_the_requested_geometry(net: str) -> None:
    found = from_hub(ENTRIES[net], **GEOMETRY, seed=3)
    assert found.training
    assert found.architecture.name == net
    assert found(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    same = vggrepro.vgg(net, **GEOMETRY, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), same.parameters(), strict=True))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    file = written("A", tmp_path)
    with pytest.raises(vggrepro.UserError, match=r"weights .* of net A, not D"):
        from_hub("vgg_d", weights=str(file))
    with pytest.raises(vggrepro.UserError, match=r"classes=7 with weights .* the weights determine it"):
        from_hub("vgg_a", weights=str(file), classes=7)
    with pytest.raises(vggrepro.UserError, match=r"does not exist|cannot be read"):
        from_hub("vgg_a", weights=str(tmp_path / "none.pth"))


def test_a_checkout_works_without_installation(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "vggrepro", checkout / "vggrepro", ignore=ignored)
    shutil.copy(REPOSITORY / "hubconf.py", checkout)
    script = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path = [place for place in sys.path if place != {str(REPOSITORY)!r}]
import torch
net = torch.hub.load({str(checkout)!r}, "vgg_a", source="local", classes=7, crop=32, width=0.0625)
import vggrepro
assert vggrepro.__file__.startswith({str(checkout)!r}), vggrepro.__file__
print(net.architecture.name)
"""
    done = run_program("-c", script, cwd=tmp_path)
    assert done.stdout == "A\n", done.stderr
