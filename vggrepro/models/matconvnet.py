"""MatConvNet's nets: imagenet-vgg-verydeep-16.mat and -19.mat, which its import-caffe.py made of the authors' files.

SciPy's reader of MATLAB files is not used: a damaged file can end the process in it, and it passes over checksums.
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
    """The layers of a SimpleNN as Caffe has them, and the mean colour (RGB, grey levels) where the file says one.

    In the file every layer is a convolution of (rows, columns, in, out), fc6 one of 7 x 7, and conv1_1's input is RGB.

    Raises:
        Exception: of any kind, for a file that is torn or holds something else.
    """
    content = _variables(file.read_bytes())
    if "layers" not in content:
        raise ValueError("a MATLAB file without `layers`; of MatConvNet's nets, the SimpleNN form is read here")
    layers: Layers = {}
    for (layer,) in content["layers"]:
        if not len(layer.get("weights", ())):
            continue  # a ReLU, pooling, the softmax
        name, (kernel, bias) = layer["name"], layer["weights"]
        if name in layers:
            raise ValueError(f"layer {name!r} stands twice")
        kernel = kernel.reshape(kernel.shape + (1,) * (4 - kernel.ndim))  # MATLAB drops trailing axes of length 1
        kernel = kernel.transpose(3, 2, 0, 1)
        if name == "conv1_1":
            kernel = kernel[:, ::-1]
        layers[name] = (kernel.reshape(len(kernel), -1) if name.startswith("fc") else kernel), bias
    return layers, _mean_colour(content)


def _mean_colour(content: dict[str, Any]) -> list[float] | None:
    """Of `meta.normalization.averageImage`, or in older files `normalization.averageImage`: a colour or an image."""
    (described,) = content.get("meta", [content])
    (normalization,) = described.get("normalization", [{}])
    image = normalization.get("averageImage", np.empty(0))
    if image.size % 3 or not image.size:  # [0, 0] or [] say that there is none
        return None
    colours = image.astype(np.float64).reshape(-1, 3)
    if np.ptp(colours, axis=0).max() > 1e-3:
        raise ValueError("its averageImage differs from place to place; only a mean colour can be subtracted here")
    return colours.mean(axis=0).tolist()


# MAT-file format, level 5 (MathWorks): after a header of 128 bytes, elements of a type, a length and that many bytes.
_HEADER, _LITTLE_ENDIAN = 128, b"\x00\x01IM"
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXT = {1: "utf-8", 2: "utf-8", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)  # classes of matrices


def _variables(content: bytes) -> dict[str, Any]:
    """Cell arrays as lists, structures as lists of dicts, text as str, numbers as arrays, anything else as None."""
    if content[_HEADER - 4 : _HEADER] != _LITTLE_ENDIAN:
        raise ValueError("not a MATLAB file of level 5")
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
        if short := kind >> 16:  # of up to four bytes, in the place of the length
            yield kind & 0xFFFF, data[at + 4 : at + 4 + short]
            at += 8
            continue
        at += 8
        if at + length > len(data):
            raise ValueError("it ends too early")
        yield kind, data[at : at + length]
        at += length if kind == _COMPRESSED else length + -length % 8


def _matrix(data: memoryview) -> tuple[str, Any]:
    if not data:  # so MATLAB writes what was never set
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
            raise ValueError(f"a matrix of {dims} holds {len(numbers)} bytes")
        item = np.frombuffer(numbers, _NUMBERS[kind]).reshape(dims, order="F")
    return bytes(label).decode(), item
