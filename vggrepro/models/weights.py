"""Weight files of other programs: the authors' Caffe nets, MatConvNet's, torchvision's, timm's, safetensors, ONNX.

Whatever a file implies of order, range, mean and standard deviation of the pixels is brought into one form: RGB, grey
levels 0-255, with the mean to subtract and the standard deviation to divide by beside the weights. Nothing in a file is
executed.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vggrepro.errors import UserError, reason_of
from vggrepro.files import replacing
from vggrepro.models import caffe, matconvnet
from vggrepro.models.onnx import to_onnx
from vggrepro.models.other_trainers import net_in
from vggrepro.models.table1 import architecture
from vggrepro.models.torch_file import read_torch
from vggrepro.models.vgg import VGG
from vggrepro.paper import facts, value

Preprocessing = Literal["paper", "torchvision"]
PREPROCESSING: Mapping[Preprocessing, dict[str, Any]] = MappingProxyType(
    {
        "paper": {"channels": "RGB", "range": [0, 255], "mean": list(value("mean_rgb")), "std": [1.0, 1.0, 1.0]},
        "torchvision": {
            "channels": "RGB",
            "range": [0, 255],
            "mean": [255 * part for part in (0.485, 0.456, 0.406)],
            "std": [255 * part for part in (0.229, 0.224, 0.225)],
        },
    }
)
"""What a net's input is: grey levels, from which the mean is subtracted, divided by the standard deviation."""

ILSVRC_CLASSES_SHA256 = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""Of the 1000 sorted WordNet ids, joined by newlines: the order of classes in the authors' nets and torchvision's."""

_KNOWN = {  # by SHA-256, torchvision's files by its first digits, which their names repeat, MatConvNet's by MD5
    "a6196bc498e45ea4cb2637114ae8db9410cf1556fd60a55ae93272371beba197": "the authors' VGG_ILSVRC_16_layers.caffemodel",
    "31b4c627c40c6ee151325f079b7ac557fddbd1f79af932888796127a4f4f6954": "the authors' VGG_ILSVRC_19_layers.caffemodel",
    "bbd30ac9": "torchvision's vgg11",
    "c768596a": "torchvision's vgg13",
    "397923af": "torchvision's vgg16",
    "dcbb9e9d": "torchvision's vgg19",
    "88682ab5": "torchvision's IMAGENET1K_FEATURES, the convolutions of the authors' VGG_ILSVRC_16_layers",
    "6002323d": "torchvision's vgg11_bn",
    "abd245e5": "torchvision's vgg13_bn",
    "6c64b313": "torchvision's vgg16_bn",
    "c79401a0": "torchvision's vgg19_bn",
    "f72d927587ca4c97fbd165ec9cb9997f": "imagenet-vgg-verydeep-16.mat",
    "106118b7cf60435e6d8e04f6a6dc3657": "imagenet-vgg-verydeep-19.mat",
}
_FEWEST_BLOCKS = 3
"""Of a net that is recognised by its shapes: with two blocks B to E are one net, and A-LRN's first has A's tensors."""
_METADATA = "vggrepro"


@dataclass(frozen=True)
class Imported:
    """A net from a file of another program."""

    model: dict[str, Any]
    """Arguments of `architecture`."""
    weights: dict[str, Tensor]
    """State dict of `VGG`, float32."""
    preprocessing: dict[str, Any]
    """As in PREPROCESSING."""
    source: str
    """The format, the file itself where its checksum is known, and which net of a checkpoint it is."""
    sha256: str
    """Of the file, hex."""
    classes: list[str] | None
    """Names of the classes in order, where the file says them."""
    testing: dict[str, Any] | None = None
    """S, single_Q, multi_Q and flip of the net's own configuration, where the file says them."""


def read(
    file: Path, *, net: str | None = None, preprocessing: Preprocessing | None = None, key: str | None = None
) -> Imported:
    """Reads a Caffe model, MatConvNet's, torchvision's or timm's state dict, plain or safetensors, told by its content.

    So it reads checkpoints of other trainers, in which `net_in` finds the net.

    Width, crop, classes and the number of blocks follow from the shapes, and so does the column of Table 1 unless `net`
    names it. A file of the convolutions alone, or with nothing but NaN in the FC layers, gives a net without these.

    Args:
        file: the weights.
        net: the column of Table 1 that the file must be of.
        preprocessing: what the net's input was, where the file does not say it (MatConvNet's and those written here
            do), in place of what the format implies: `paper` for Caffe models, `torchvision` for the others.
        key: which net of a checkpoint that holds several, as the error and `Imported.source` name them.

    Raises:
        UserError: the file is missing, torn, hostile, of no format that is read here or of another net, it holds
            numbers that are not finite, or several nets and `key` names none of them.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(10)
            opened.seek(0)
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            digests = [sha256, sha256[:8]]
            if head.startswith(b"MATLAB"):
                opened.seek(0)
                digests = [hashlib.file_digest(opened, "md5").hexdigest()]
    except OSError as error:
        raise UserError(f"weights {file} cannot be read ({error.strerror}); give another file") from None
    known = next((_KNOWN[digest] for digest in digests if digest in _KNOWN), "")
    implied: Preprocessing = "paper" if "the authors'" in known else "torchvision"
    described: dict[str, Any] = {}
    several = False  # nets may lie in it
    try:
        if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
            tensors, source, several = read_torch(file, placeholders=True), "state dict of torch", True
        elif head[8:9] == b"{":
            tensors, described = _read_safetensors(file)
            source, several = "safetensors" + (" of this program" if described else ""), not described
        elif head.startswith((b"\x89HDF", b"MATLAB 7.3")):
            raise ValueError("HDF5, as of Keras and MATLAB 7.3, is not read here; convert it to .safetensors or .pth")
        elif head.startswith(b"MATLAB"):
            layers, mean = matconvnet.read_layers(file)
            tensors, source = _state_of_named(layers), "MatConvNet's net"
            described = {"preprocessing": PREPROCESSING["paper"] | ({"mean": mean} if mean else {})}
        else:
            layers, generation = caffe.read_layers(file)
            tensors, source, implied = _state_of_named(layers), f"Caffe model ({generation})", "paper"
    except Exception as error:  # damaged bytes provoke whatever they happen to say
        raise UserError(f"weights {file} cannot be read ({reason_of(error, 160)}); give another file") from None

    account = ""
    if several:
        tensors, account = net_in(tensors, file, key)
    elif key is not None:
        raise UserError(f"--key {key}: weights {file} hold a single net; leave --key out")
    if odd := [name for name in tensors if not name.isprintable()]:
        raise UserError(f"weights {file} cannot be read (a tensor is called {odd[0]!r}); give another file")
    fc = {name for name in tensors if name.startswith("classifier.")}
    if all(tensors[name].isnan().all() for name in fc):  # as torchvision has them where it knows convolutions alone
        tensors = {name: tensor for name, tensor in tensors.items() if name not in fc}
    model, expected = _recognise(file, tensors, net, described.get("model"))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"weights {file} are damaged: {name} holds numbers that are not finite; give another file")
    if (blocks := model.get("blocks")) and not described:  # perhaps of a file that has lost the others
        account += f", of the first {blocks} blocks of {model['net']} alone"
    zero = torch.zeros(())  # of the batch counts that old files lack
    return Imported(
        model=model,
        weights={name: tensors.get(name, zero).to(meta.dtype, copy=True) for name, meta in expected.items()},
        preprocessing=dict(described.get("preprocessing") or PREPROCESSING[preprocessing or implied]),
        source=source + (f", {known}" if known else "") + account,
        sha256=sha256,
        classes=described.get("classes"),
        testing=described.get("testing"),
    )


def write(
    file: Path,
    weights: Mapping[str, Tensor],
    *,
    model: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    classes: list[str] | None,
    testing: Mapping[str, Any] | None = None,
    dense: bool = False,
) -> None:
    """Writes a net as `.safetensors`, which carries all that :func:`read` needs, `.pth` or `.onnx`, all or nothing.

    A `.pth` is a plain state dict, with torchvision's keys for A, B, D and E; it cannot say what its input is. An
    `.onnx` says it in its metadata and is not read here; `dense` makes it the net for whole images of any size
    (Section 3.2) in place of the net for one crop. `testing` says S, single_Q, multi_Q and flip of the net's own tests.

    Raises:
        UserError: another suffix, `dense` with another suffix than `.onnx`, a file that cannot be written, or ONNX's
            packages are missing.
    """
    if file.suffix not in (".safetensors", ".pth", ".onnx"):
        raise UserError(f"--out {file}: nets are written as .safetensors, .pth or .onnx; choose one of these suffixes")
    if dense and file.suffix != ".onnx":
        raise UserError(f"--dense --out {file}: only .onnx has a dense form; give that suffix, or leave --dense out")
    described = {"model": dict(model), "preprocessing": dict(preprocessing), "classes": classes}
    described |= {"testing": dict(testing)} if testing else {}
    program = None
    if file.suffix == ".onnx":
        net = VGG(architecture(**model)).eval()
        net.load_state_dict(dict(weights))
        program = to_onnx(net, described, dense=dense)
    try:
        with replacing(file) as temporary:
            if program:
                program.save(temporary)
            elif file.suffix == ".pth":
                torch.save(dict(weights), temporary)
            else:
                plain = {key: tensor.contiguous() for key, tensor in weights.items()}
                temporary.touch()
                mode = temporary.stat().st_mode  # the library lets nobody else read its file
                save_file(plain, temporary, metadata={"format": "pt", _METADATA: json.dumps(described)})
                temporary.chmod(mode)
                _sort_metadata(temporary)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"weights {file} cannot be written ({reason_of(error)}); choose another place") from None


def _sort_metadata(file: Path) -> None:
    """Sorts the metadata of a safetensors file: the library leaves their order, and so its SHA-256, to chance."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the offsets of the tensors would move"
        opened.seek(8)
        opened.write(text.ljust(length))


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    described: dict[str, Any] = json.loads(metadata.get(_METADATA, "{}"))
    if described:  # anybody may have written it
        if missing := {"net", "classes", "crop", "width"} - described["model"].keys():
            raise ValueError(f"it does not say the {min(missing)} of its net")
        architecture(**described["model"])
        preprocessing, classes = described["preprocessing"], described["classes"]
        colours = [float(part) for key in ("mean", "std") for part in preprocessing[key]]
        if preprocessing["channels"] != "RGB" or preprocessing["range"] != [0, 255] or len(colours) != 6:
            raise ValueError(f"it describes its input as {preprocessing}")
        testing = described.get("testing")
        if testing is not None and set(testing) != {"S", "single_Q", "multi_Q", "flip"}:
            raise ValueError(f"it describes its testing as {testing}")
        if classes is not None and not (isinstance(classes, list) and len(classes) == described["model"]["classes"]):
            raise ValueError("it does not name as many classes as it has")
    return tensors, described


def _recognise(
    file: Path, tensors: Mapping[str, Tensor], net: str | None, described: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The net whose state dict this is, and its state dict on the meta device. Raises UserError, naming the nearest."""
    if described and net not in (None, described["net"]):
        raise UserError(
            f"weights {file} are of net {described['net']}, not {net}; leave --net out or give another file"
        )
    misfits: list[tuple[int, int, str, str]] = []
    for model in [described] if described else _candidates(file, tensors, net):
        with torch.device("meta"):
            expected = VGG(architecture(**model)).state_dict()
        misfit = _misfit(tensors, expected)
        if misfit is None:
            return model, expected
        shared = sum(name in tensors and tensors[name].shape == meta.shape for name, meta in expected.items())
        name = model["net"] + (f" of {model['blocks']} blocks" if model.get("blocks") else "")
        misfits.append((shared, -len(expected.keys() ^ tensors.keys()), name, misfit))
    *_, nearest, misfit = max(misfits, key=lambda found: found[:2])
    what = f"are not of net {net}" if net else f"are of no net of Table 1; nearest is {nearest}"
    raise UserError(f"weights {file} {f'do not fit net {nearest}' if described else what}: {misfit}; give another file")


def _candidates(file: Path, tensors: Mapping[str, Tensor], net: str | None) -> Iterator[dict[str, Any]]:
    """Table 1's columns, or `net` alone, in the geometry of these shapes. Raises UserError where they have none."""
    fc6, fc8, first = (tensors.get(f"{key}.weight") for key in ("classifier.0", "classifier.6", "features.0"))
    alone = not any(key.startswith("classifier.") for key in tensors)  # the convolutions
    complete = fc6 is not None and fc8 is not None and (fc6.ndim, fc8.ndim) == (2, 2)
    if first is None or first.ndim != 4 or not (alone or complete):
        raise UserError(
            f"weights {file} are of no net of Table 1 (no conv1_1, fc6 and fc8 among {len(tensors)} tensors: "
            f"{', '.join(list(tensors)[:3])}, ...); give a VGG with its three fully-connected layers, or without all "
            f"three"
        )
    every = len(facts().architectures["A"])  # as in all columns
    nets = [net] if net else list(facts().architectures)
    for blocks, name in product(range(every, _FEWEST_BLOCKS - 1, -1), nets):
        model: dict[str, Any] = {
            "net": name,
            "batch_norm": any(key.endswith("running_mean") for key in tensors),
            "classes": value("classes") if fc8 is None else len(fc8),
            "width": len(first) / architecture(name).layers()[0].shape[0],
        } | ({} if blocks == every else {"blocks": blocks})
        last = architecture(**model, fully_connected=False)
        if fc6 is None:
            yield model | {"crop": architecture(name).fc6_kernel * last.stride, "fully_connected": False}
        else:
            side = math.isqrt(fc6.shape[1] // last.layers()[-1].shape[0])
            yield model | {"crop": max(1, side) * last.stride}


def _misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is missing, too many or of another shape. Old files lack batch norm's batch counts."""
    for name, meta in expected.items():
        if name not in tensors:
            if name.endswith("num_batches_tracked"):
                continue
            return f"{name} is missing"
        if tensors[name].shape != meta.shape:
            return f"{name} is {tuple(tensors[name].shape)} instead of {tuple(meta.shape)}"
    more = sorted(tensors.keys() - expected.keys())
    return f"it has no {more[0]}" if more else None


def _state_of_named(layers: caffe.Layers) -> dict[str, Tensor]:
    """State dict of the column of Table 1 that has layers of these names. Raises ValueError when none has."""
    for net in facts().architectures:
        built = architecture(net)
        kernels = {layer.name: layer.kernel for layer in built.layers() if layer.parameters}
        # C and D have the same names; their kernels differ.
        if kernels.keys() == layers.keys() and all(
            kernel in (None, layers[name][0].shape[-1]) for name, kernel in kernels.items()
        ):
            return caffe.state_of(layers, built)
    raise ValueError(f"its layers are of no net of Table 1: {', '.join(layers)}")
