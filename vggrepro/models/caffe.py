"""Reader of Caffe models: the authors' files, and other nets of Table 1 with the same layer names."""

import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggrepro.models.table1 import Architecture

Layers = dict[str, tuple[NDArray[Any], NDArray[Any]]]
"""Weight and bias of conv1_1, ..., fc8 by name.

The weight of a convolution has shape (out, in, k, k), with BGR input for conv1_1. That of a fully-connected layer has
shape (out, in), with fc6's inputs in the order channel, row, column, as in torch. Old files have leading axes of length
1.
"""

# Caffe's files are protocol buffers. These are the field numbers of caffe.proto used here.
_GENERATIONS = {  # the field of NetParameter that has the layers; their fields name, blobs and V0LayerParameter
    "LayerParameter": (100, (1, 7)),
    "V1LayerParameter": (2, (4, 6, 1)),
}
_BLOB_OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
_BLOB_DATA, _BLOB_SHAPE, _BLOB_DOUBLE = 5, 7, 8
_SHAPE_DIM = 1
_MAX_DIMENSIONS = 8


def read_layers(file: Path) -> tuple[Layers, str]:
    """Reads the layers with weights, and the generation of their messages. Raises ValueError for any other file."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            raise ValueError("it is empty")
        content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    layers: Layers = {}
    generations = {}
    for generation, (number, numbers) in _GENERATIONS.items():
        for message in _fields(content, number)[0]:
            names, blobs, *oldest = _fields(message, *numbers)
            if any(oldest):
                raise ValueError("it has Caffe's oldest format; convert it with Caffe's upgrade tool")
            if not blobs:
                continue
            name = bytes(names[-1]).decode() if names else ""
            if len(blobs) != 2 or name in layers:
                raise ValueError(f"layer {name!r} has {len(blobs)} blobs or occurs twice")
            layers[name] = _blob(blobs[0]), _blob(blobs[1])
            generations[generation] = True
    if not layers:
        raise ValueError("it has no layer with weights: not a Caffe model or another supported format")
    return layers, ", ".join(generations)


def state_of(layers: Layers, architecture: Architecture) -> dict[str, Tensor]:
    """Converts Caffe's layers by name to the state dict of `architecture`, without layers that are missing."""
    state = {}
    for layer in architecture.layers():
        if layer.name not in layers:
            continue
        weight, bias = layers[layer.name]
        axes = 4 if layer.kind == "conv" else 2
        while weight.ndim > axes and weight.shape[0] == 1:
            weight = weight[0]
        if layer.name == "conv1_1":
            weight = weight[:, ::-1]
        state[f"{layer.key}.weight"] = torch.from_numpy(np.array(weight, np.float32))
        state[f"{layer.key}.bias"] = torch.from_numpy(np.array(bias, np.float32).reshape(-1))
    return state


def _blob(message: memoryview) -> NDArray[Any]:
    shapes, floats, doubles, *old_shape = _fields(message, _BLOB_SHAPE, _BLOB_DATA, _BLOB_DOUBLE, *_BLOB_OLD_SHAPE)
    if shapes:
        shape = [dim for part in _fields(shapes[-1], _SHAPE_DIM)[0] for dim in _integers(part)]
    else:
        shape = [_varint(parts[-1], 0)[0] if parts else 0 for parts in old_shape]
    data = np.frombuffer(b"".join(doubles or floats), "<f8" if doubles else "<f4")
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) != len(data):
        raise ValueError(f"a blob of shape {shape[:_MAX_DIMENSIONS]} holds {len(data)} numbers")
    return data.reshape(shape)


def _fields(message: memoryview, *numbers: int) -> list[list[memoryview]]:
    """Returns the contents of all fields with each of these numbers."""
    found: dict[int, list[memoryview]] = {number: [] for number in numbers}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, end = _varint(message, at)
        elif wire == 2:
            length, at = _varint(message, at)
            end = at + length
        elif wire in (1, 5):
            end = at + (8 if wire == 1 else 4)
        else:
            raise ValueError("it is not a Caffe model or another supported format")
        if end > len(message):
            raise ValueError("it is truncated or has an unsupported format")
        if number in found:
            found[number].append(message[at:end])
        at = end
    return list(found.values())


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Decodes an integer, and returns the position behind it."""
    number = 0
    for place, byte in enumerate(message[at : at + 10]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError("it is truncated or has an unsupported format")


def _integers(part: memoryview) -> Iterator[int]:
    """Yields the integers of a repeated field, packed or not."""
    at = 0
    while at < len(part):
        number, at = _varint(part, at)
        yield number
