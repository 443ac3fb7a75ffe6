"""Reader of MatConvNet's nets imagenet-vgg-verydeep-16.mat and -19.mat, which were converted from the authors' files.

SciPy's reader of MATLAB files is not used: it ignores checksums and can crash the process on a damaged file.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vggrepro.models.caffe import Layers


def read_layers(file: Path) -> tuple[Layers, list[float] | None]:
    """Reads the layers of a SimpleNN in Caffe's form, and the mean colour (RGB, 0-255) if the file has one.

    In the file, every layer is a convolution of shape (rows, columns, in, out), also fc6 (7 x 7), and conv1_1 takes
    RGB. Raises exceptions of any kind for a damaged file or other contents.
    """
    content = _variables(file.read_bytes())
    if "layers" not in content:
        raise ValueError("it has no `layers`; only MatConvNet's SimpleNN form is supported")
    layers: Layers = {}
    for (layer,) in content["layers"]:
        if not len(layer.get("weights", ())):
            continue  # a ReLU, pooling, the softmax
        name, (kernel, bias) = layer["name"], layer["weights"]
        if name in layers:
            raise ValueError(f"layer {name!r} occurs twice")
        kernel = kernel.reshape(kernel.shape + (1,) * (4 - kernel.ndim))  # MATLAB drops trailing axes of length 1
        kernel = kernel.transpose(3, 2, 0, 1)
        if name == "conv1_1":
            kernel = kernel[:, ::-1]
        layers[name] = (kernel.reshape(len(kernel), -1) if name.startswith("fc") else kernel), bias
    return layers, _mean_colour(content)


def _mean_colour(content: dict[str, Any]) -> list[float] | None:
    """Reads `meta.normalization.averageImage`, in older files `normalization.averageImage`: a colour or an image."""
    (described,) = content.get("meta", [content])
    (normalization,) = described.get("normalization", [{}])
    image = normalization.get("averageImage", np.empty(0))
    if image.size % 3 or not image.size:  # [0, 0] or [] mean none
        return None
    colours = image.astype(np.float64).reshape(-1, 3)
    if np.ptp(colours, axis=0).max() > 1e-3:
        raise ValueError("its averageImage is not constant; only a mean colour can be subtracted")
    return colours.mean(axis=0).tolist()


# MAT-file format, level 5 (MathWorks): a header of 128 bytes, then elements of a type, a length and that many bytes.
_HEADER, _LITTLE_ENDIAN = 128, b"\x00\x01IM"
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXT = {1: "utf-8", 2: "utf-8", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)  # classes of matrices


def _variables(content: bytes) -> dict[str, Any]:
    """Reads cell arrays as lists, structures as lists of dicts, text as str, numbers as arrays, the rest as None."""
    if content[_HEADER - 4 : _HEADER] != _LITTLE_ENDIAN:
        raise ValueError("it is not a MATLAB file of level 5")
    found = {}
    for kind, element in _elements(memoryview(content)[_HEADER:]):
        if kind == _COMPRESSED:
            ((_, matrix),) = _elements(memoryview(zlib.decompress(element)))
        else:
            matrix = element
        name, item = _matrix(matrix)
        found[name] = item
    return found


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if short := kind >> 16:  # up to four bytes, in place of the length
            yield kind & 0xFFFF, data[at + 4 : at + 4 + short]
            at += 8
            continue
        at += 8
        if at + length > len(data):
            raise ValueError("it is truncated")
        yield kind, data[at : at + length]
        at += length if kind == _COMPRESSED else length + -length % 8


def _matrix(data: memoryview) -> tuple[str, Any]:
    if not data:  # MATLAB's form of an unset value
        return "", np.empty((0, 0))
    (_, flags), (_, shape), (_, label), *rest = _elements(data)
    form, dims = flags[0], np.frombuffer(shape, "<i4").tolist()
    item: Any = None
    if form == _CELL:
        item = [_matrix(part)[1] for _, part in rest]
    elif form == _STRUCT:
        (_, width), (_, names), *parts = rest
        (step,) = np.frombuffer(width, "<i4").tolist()
        keys = [bytes(names[at : at + step]).split(b"\0")[0].decode() for at in range(0, len(names), step)]
        values = [_matrix(part)[1] for _, part in parts]
        item = [dict(zip(keys, values[at : at + len(keys)], strict=True)) for at in range(0, len(values), len(keys))]
    elif form == _CHAR:
        item = "".join(bytes(part).decode(_TEXT[kind]) for kind, part in rest)
    elif form in _NUMERIC:
        kind, numbers = rest[0]
        if len(numbers) != math.prod(dims) * np.dtype(_NUMBERS[kind]).itemsize:
            raise ValueError(f"a matrix of {dims} has {len(numbers)} bytes")
        item = np.frombuffer(numbers, _NUMBERS[kind]).reshape(dims, order="F")
    return bytes(label).decode(), item
