"""Caffe models: the authors' own files, and any other of Table 1's nets with the same names of layers."""

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
"""(weight, bias) of conv1_1, ..., fc8.

A convolution's weight is (out, in, k, k), conv1_1's input BGR. A fully-connected layer's is (out, in), fc6's inputs in
the order channel, row, column, as in torch. Leading axes of length 1, which old files have, are dropped.
"""

# Caffe's files are protocol buffers. Of caffe.proto, these field numbers matter here:
_GENERATIONS = {  # of layers: the field of NetParameter that holds them; their name, blobs and V0LayerParameter
    "LayerParameter": (100, (1, 7)),
    "V1LayerParameter": (2, (4, 6, 1)),
}
_BLOB_OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
_BLOB_DATA, _BLOB_SHAPE, _BLOB_DOUBLE = 5, 7, 8
_SHAPE_DIM = 1
_MOST_DIMENSIONS = 8


def read_layers(file: Path) -> tuple[Layers, str]:
    """The layers of a Caffe model that have weights, and the generation of its messages.

    Raises:
        ValueError: the file is torn, or no Caffe model.
    """
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
                raise ValueError("it is of Caffe's oldest form; bring it up to date with Caffe's upgrade tool")
            if not blobs:
                continue
            name = bytes(names[-1]).decode() if names else ""
            if len(blobs) != 2 or name in layers:
                raise ValueError(f"layer {name!r} has {len(blobs)} blobs, or stands twice")
            layers[name] = _blob(blobs[0]), _blob(blobs[1])
            generations[generation] = True
    if not layers:
        raise ValueError("no layer with weights in it: not a Caffe model, nor any other format that is read here")
    return layers, ", ".join(generations)


def state_of(layers: Layers, built: Architecture) -> dict[str, Tensor]:
    """The state dict of a net, or of those of its layers that are given, from Caffe's layers by name.

    Args:
        layers: as in `Layers`.
        built: the net.
    """
    state = {}
    for layer in built.layers():
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
    if len(shape) > _MOST_DIMENSIONS or math.prod(shape) != len(data):
        raise ValueError(f"a blob of shape {shape[:_MOST_DIMENSIONS]} holds {len(data)} numbers")
    return data.reshape(shape)


def _fields(message: memoryview, *numbers: int) -> list[list[memoryview]]:
    """The bytes of all fields of each of these numbers."""
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
            raise ValueError("not a Caffe model, nor any other format that is read here")
        if end > len(message):
            raise ValueError("it ends too early, or is of no format that is read here")
        if number in found:
            found[number].append(message[at:end])
        at = end
    return list(found.values())


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    whole = 0
    for place, byte in enumerate(message[at : at + 10]):
        whole |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return whole, at + place + 1
    raise ValueError("it ends too early, or is of no format that is read here")


def _integers(part: memoryview) -> Iterator[int]:
    """Of a repeated field, packed or not."""
    at = 0
    while at < len(part):
        whole, at = _varint(part, at)
        yield whole
