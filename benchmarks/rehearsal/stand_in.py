"""Data of the dress rehearsal: a stand-in for ILSVRC-2012, its boxes, finished runs, features.

    python benchmarks/rehearsal/stand_in.py KIND PLACE SCALE ...

Names, counts and layouts are the true ones, counts divided by SCALE; images are a tenth as wide, a few hundred bytes.
"""

import gzip
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

TRAIN, VAL, CLASSES = 1_281_167, 50_000, 1000
BOXED = 544_546
"""Training images with an annotation."""
ODD = {11: "CMYK", 23: "L", 37: "progressive", 41: "PNG", 53: "torn", 67: "torn", 71: "torn"}
"""Training images that are not as the others, by number."""
SHAPES = 400


@cache
def images() -> tuple[list[bytes], list[tuple[int, int]]]:
    """Returns files and their (width, height): many shapes, like ILSVRC."""
    random = np.random.default_rng(0)
    ratios = [4 / 3] * 50 + [3 / 2] * 20 + [1.0] * 8 + [4 / 3.01] * 6 + random.uniform(1, 2.2, 16).tolist()
    files, sizes = [], []
    for number in range(SHAPES):
        short = int(random.integers(30, 50))
        size = (round(short * ratios[number % len(ratios)]), short)
        sizes.append(size if random.random() < 0.75 else size[::-1])
        files.append(encoded(sizes[-1], number))
    return files, sizes


def encoded(size: tuple[int, int], number: int, kind: str = "RGB") -> bytes:
    from PIL import Image

    colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
    out, image = io.BytesIO(), Image.new("RGB", size, colour)
    if kind == "PNG":
        image.save(out, "PNG")
    else:
        image = image.convert(kind) if kind in ("L", "CMYK") else image
        image.save(out, "JPEG", quality=20, optimize=True, progressive=kind == "progressive")
    return out.getvalue()[: 60 if kind == "torn" else None]


def train_images(scale: int) -> Iterator[tuple[int, str, range]]:
    """Yields (class number, wnid, numbers of its images)."""
    from vggrepro.paper import ilsvrc_classes

    total, first = max(CLASSES, TRAIN // scale), 0
    for place, wnid in enumerate(ilsvrc_classes()):
        count = total // CLASSES + (place < total % CLASSES)
        yield place, wnid, range(first, first + count)
        first += count


def val_classes(scale: int) -> list[int]:
    return [(617 * number) % CLASSES for number in range(VAL // scale)]


def member(name: str, content: bytes) -> bytes:
    """Returns a tar member with its header."""
    head = tarfile.TarInfo(name)
    head.size = len(content)
    return head.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def archives(place: Path, scale: int) -> None:
    """ILSVRC's original archives: a tar of 1,000 tars, one of validation images, the development kit."""
    files, sizes = images()
    odd = {number: encoded(sizes[number], number, kind) for number, kind in ODD.items()}
    wnids = []
    with (place / "ILSVRC2012_img_train.tar").open("wb") as train:
        for _, wnid, numbers in train_images(scale):
            wnids.append(wnid)
            inner = b"".join(
                member(f"{wnid}_{number - numbers.start}.JPEG", odd.get(number) or files[number * 79 % SHAPES])
                for number in numbers
            )
            train.write(member(f"{wnid}.tar", inner + bytes(1024)))
        train.write(bytes(1024))
    with (place / "ILSVRC2012_img_val.tar").open("wb") as val:
        for number, _ in enumerate(val_classes(scale), 1):
            val.write(member(f"ILSVRC2012_val_{number:08}.JPEG", files[number * 79 % SHAPES]))
        val.write(bytes(1024))

    from scipy.io import savemat

    synsets = [(CLASSES - label, wnid, "crane") for label, wnid in enumerate(wnids)]  # its own order is another
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(synsets, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])})
    truth = "".join(f"{CLASSES - label}\n" for label in val_classes(scale))
    with gzip.open(place / "ILSVRC2012_devkit_t12.tar.gz", "wb") as kit:
        kit.write(member("ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue()))
        kit.write(member("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode()))
        kit.write(bytes(1024))


def annotations(place: Path, scale: int) -> None:
    """ILSVRC's two archives of boxes: one XML file an image, one object or, in a tenth, two."""
    _, sizes = images()

    def xml(number: int, wnid: str, name: str) -> bytes:
        width, height = sizes[number * 79 % SHAPES]
        first = (
            f"<object><name>{wnid}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox><xmin>{number % 5}</xmin><ymin>{number % 7}</ymin><xmax>{width - 9}</xmax>"
            f"<ymax>{height - 11}</ymax></bndbox></object>"
        )
        second = first.replace("<xmin>", "<xmin>1") if number % 10 == 0 else ""
        return (
            f"<annotation><folder>{wnid}</folder><filename>{name}</filename><source><database>ILSVRC_2012</database>"
            f"</source><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            f"<segmented>0</segmented>{first}{second}</annotation>\n"
        ).encode()

    wnids = []
    with gzip.open(place / "ILSVRC2012_bbox_train_v2.tar.gz", "wb", compresslevel=1) as train:
        for _, wnid, numbers in train_images(scale):
            wnids.append(wnid)
            for number in numbers[: -(-len(numbers) * BOXED // TRAIN)]:
                name = f"{wnid}_{number - numbers.start}"
                train.write(member(f"{wnid}/{name}.xml", xml(number, wnid, name)))
        train.write(bytes(1024))
    with gzip.open(place / "ILSVRC2012_bbox_val_v3.tgz", "wb", compresslevel=1) as val:
        for number, label in enumerate(val_classes(scale), 1):
            name = f"ILSVRC2012_val_{number:08}"
            val.write(member(f"val/{name}.xml", xml(number, wnids[label], name)))
        val.write(bytes(1024))


def stages(place: Path, index: str, seeds: str | None = None) -> list[Any]:
    """The configurations of configs/reproduce.yaml, whose runs lie there."""
    from vggrepro.config.recipes import load_graph

    changes = [f"run.root={place}", f"data.index={index}", "run.device=cpu"]
    return list(load_graph(Path("reproduce"), changes, seeds).stages.values())


def runs(place: Path, scale: int, index: str, root: str, seeds: str | None = None) -> None:
    """Finished runs, all but their answers. They are made in `place` and will lie in `root`."""
    from vggrepro.data.images.index import load
    from vggrepro.storage.directory import RunDirectory
    from vggrepro.training.stage import begin

    images = load(Path(index))
    for config in stages(Path(root), index, seeds):
        here = config.with_settings("run", root=place)
        begin(here, None, images, None, ranks=8)
        run = RunDirectory(here.directory)
        run.write_text("config.yaml", config.to_yaml())
        run.write_json("final.json", {"weights": weights_of(config), "step": config.train.iterations})
        run.checkpoints.mkdir()
        (run.checkpoints / "final.pt").touch()
        run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records(config, scale)))


def weights_of(config: Any) -> str:
    return hashlib.sha256(config.name.encode()).hexdigest()


def records(config: Any, scale: int) -> Iterator[dict[str, Any]]:
    """Returns lines of metrics.jsonl: one per 20 iterations, and one per validation."""
    random = np.random.default_rng(config.run.seed)
    yield {"step": 0, "epoch": 0.0, "kind": "event", "event": "gradient exchange", "comm": "factor", "ranks": 8}
    for number, noise in enumerate(random.normal(0, 0.05, config.train.iterations // scale // 20).tolist(), 1):
        step, loss = 20 * number, 6.9 * (1 + number / 200) ** -0.3 + noise
        moment = {"step": step, "epoch": step * 256 / TRAIN, "time": 1.75e9 + step}
        yield moment | {
            "kind": "train",
            "loss": loss,
            "learning_rate": 0.01 * 0.1 ** (3 * step // config.train.iterations),
            "seconds_left": config.train.iterations - step + noise,
            "bad_images": 0,
            "images_per_s": 2048 + 100 * noise,
            "images_per_s_without_wait": 2100 + 100 * noise,
            "data_wait": abs(noise),
            "memory_gib": 31.25 + noise,
        }
        if number % 250 == 0:
            errors = {"top1_error": 12 * loss, "top5_error": 5 * loss, "n": VAL // scale}
            yield moment | {"kind": "validation", "Q": 256, "learning_rate": 0.01} | errors


def results(done: Path, _: int, index: str, root: str, seeds: str | None = None) -> None:
    """Answers of the runs: a centre crop and dense at each Q, of D and E with jitter multi-crop as well.

    `done` lists these and the runs' other files, and nothing that storing has put beside them. The image decides most
    of whether a net is right, as with true nets.
    """
    from vggrepro.data.images.index import load
    from vggrepro.evaluation.posteriors import Posteriors, PosteriorsKey
    from vggrepro.storage.directory import RunDirectory

    images, files = load(Path(index)), [file for file in Path(root).rglob("*") if file.is_file()]
    labels = np.array(images.split("val").label)
    random, rows = np.random.default_rng(1), np.arange(len(labels))
    others = np.exp(random.standard_normal((len(labels), CLASSES), np.float32))
    ease = random.normal(6, 3.5, len(labels))
    for depth, config in enumerate(stages(Path(root), index, seeds)):
        run = RunDirectory(config.directory)
        sides = sorted({*config.single_Q, *config.multi_Q})
        several = ("multicrop",) if config.model.net in ("D", "E") and isinstance(config.data.S, tuple) else ()
        sets = [("centre", side) for side in config.single_Q]
        sets += [(method, side) for method in ("dense", *several) for side in sides]
        margin = ease + 0.05 * depth + random.normal(0, 0.8, len(labels))
        for number, (method, Q) in enumerate(sets):
            values = np.roll(others, 7 * number + 31 * depth, axis=1)
            values[rows, labels] = np.exp(margin + random.normal(0, 0.3, len(labels)) + 0.2 * (method != "centre"))
            values /= values.sum(axis=1, keepdims=True)
            key = PosteriorsKey(weights_of(config), images.fingerprint, method, Q, method != "centre")
            key.save(run, Posteriors(values, labels))
            files.append(key.file(run))
    done.write_text(json.dumps([str(file.relative_to(root)) for file in files]))


SETS = {"caltech256": (30_607, 257, "recall"), "voc2007": (9_963, 20, "mAP11"), "voc2012": (22_531, 20, "mAP")}
"""Appendix B's data sets: images, classes, measure."""
LABELLED = {"voc2012": 11_540}
UNITS = 4096


def transfer_set(name: str, scale: int) -> Any:
    """A data set of Appendix B without its images."""
    from vggrepro.data.transfer.transfer_set import Partition, TransferSet
    from vggrepro.paper import facts

    count, classes, measure = SETS[name]
    count, random = max(6 * classes, count // scale), np.random.default_rng(2)
    label = np.arange(count) % classes
    targets = np.where(label[:, None] == np.arange(classes), 1, -1).astype(np.int8)
    if measure != "recall":
        targets[random.random(targets.shape) < 0.05] = 1  # several objects in an image
    labelled = max(6 * classes, LABELLED.get(name, SETS[name][0]) // scale)
    half = min((facts().transfer[name].train_per_class or labelled) * classes // scale or labelled, labelled // 2)
    order = random.permutation(labelled)
    partition = Partition(order[: half // 2], order[half // 2 : half], order[half:])
    index = SimpleNamespace(
        fingerprint=hashlib.sha256(name.encode()).hexdigest(), source=name, split=lambda _: range(count)
    )
    return TransferSet(name, index, tuple(map(str, range(classes))), measure, np.arange(count), targets, [partition])


def transfer_net(root: Path) -> Any:
    """Net D as Appendix B uses it, in a run directory below `root`."""
    from vggrepro.config.recipes import load_stage
    from vggrepro.pipeline.net import Net
    from vggrepro.storage.directory import RunDirectory

    config, _ = load_stage(Path("vgg_D_jitter"), [f"run.root={root}", "run.device=cpu", "tracking.mlflow=false"])
    run = RunDirectory(config.directory)
    return Net(run.path, config, config, weights_of(config), 1, run, lambda: None)


def features(place: Path, scale: int, name: str) -> None:
    """Features of a data set at each Q: of each class some units are large, as after the last ReLU."""
    from vggrepro.evaluation.feature_spec import feature_specs
    from vggrepro.evaluation.features import Features

    data, net = transfer_set(name, scale), transfer_net(place)
    random = np.random.default_rng(3)
    centres = np.maximum(random.standard_normal((len(data.classes), UNITS), np.float32) - 1, 0)
    mean = (data.targets > 0).astype(np.float32) @ centres
    for Q in feature_specs(name, net.config)[0].Q:
        values = mean + random.standard_normal(mean.shape, np.float32)
        values -= 0.5
        np.maximum(values, 0, out=values)
        net.results(data.index.fingerprint).features(net.layer, Q).save(net.run, Features(values))


KINDS = {made.__name__: made for made in (archives, annotations, runs, results, features)}

if __name__ == "__main__":
    kind, at, scale_text, *more = sys.argv[1:]
    target = Path(at)
    if target.suffix:  # a file, which is written last
        KINDS[kind](target, int(scale_text), *more)
    else:
        work = target.with_name(f"{target.name}.part")
        work.mkdir(parents=True)
        KINDS[kind](work, int(scale_text), *more)
        work.rename(target)
