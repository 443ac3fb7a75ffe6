"""Compares what runs store."""

import json
from pathlib import Path

import numpy as np


def arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Loads every array in a folder of stores, by file."""
    found = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as content:
            found[file.name] = dict(content)
    return found


def assert_same_arrays(left: Path, right: Path) -> None:
    """Asserts that two folders store the same arrays, bit for bit."""
    first, second = arrays(left), arrays(right)
    assert first.keys() == second.keys()
    assert first
    for name, content in first.items():
        assert content.keys() == second[name].keys()
        for key, array in content.items():
            if key == "note":  # the paths of the images are not part of the result
                assert json.loads(str(array))["validated"] == json.loads(str(second[name][key]))["validated"]
                continue
            np.testing.assert_array_equal(second[name][key], array, err_msg=f"{name}: {key}")
