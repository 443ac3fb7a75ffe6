"""What runs store, compared."""

import json
from pathlib import Path

import numpy as np


def arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every array in a folder of stores, by file."""
    found = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as content:
            found[file.name] = dict(content)
    return found


def assert_same_arrays(one: Path, other: Path) -> None:
    """Bit for bit."""
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    assert first
    for name, content in first.items():
        assert content.keys() == second[name].keys()
        for key, array in content.items():
            if key == "note":  # where the images lay is not of the result
                assert json.loads(str(array))["validated"] == json.loads(str(second[name][key]))["validated"]
                continue
            np.testing.assert_array_equal(second[name][key], array, err_msg=f"{name}: {key}")
