"""PASCAL VOC's data sets of Appendix B: the classification of VOC 2007 and of VOC 2012, and actions of VOC 2012."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.annotations import XML_MOST, Annotation, Unread, parse_voc
from vggrepro.data.box_scan import Edges, cut_to_image, edges_of
from vggrepro.data.index import Index
from vggrepro.data.members import Member
from vggrepro.data.sampler import class_permutation
from vggrepro.data.scan import Progress, open_members
from vggrepro.data.transfer import Partition, TransferSet
from vggrepro.data.tree import Files, contents, place_of
from vggrepro.data.views import Ints
from vggrepro.data.voc_sets import Key, Kit, Sample
from vggrepro.errors import UserError
from vggrepro.paper import facts, value

_IMAGES = "JPEGImages"
_DISTRACTORS = "other"  # persons of no action, whom the development kit neither trains nor measures a class for


class _Task(NamedTuple):
    year: str
    folder: str
    """Of `ImageSets`."""
    labelled: tuple[str, ...]
    """Sets whose labels are public."""
    persons: bool
    """Whether a sample is a person, not an image."""


TASKS = {
    "voc2007": _Task("2007", "Main", ("train", "val", "test"), persons=False),
    "voc2012": _Task("2012", "Main", ("train", "val"), persons=False),
    "voc2012_action": _Task("2012", "Action", ("train", "val"), persons=True),
}


def open_voc(name: str, source: Path, seed: int, cache: Path, progress: Progress) -> TransferSet:
    """A key of `TASKS`, from a folder (VOCdevkit, one year's, one that holds those or their tars) or from one tar.

    VOC 2007 is learnt from train, val decides, and test is tested on. The labels of VOC 2012's test images are not
    public: val is tested on, and images drawn from train decide; test images that are there are samples without
    labels, which `submission` tests on. Samples are ordered by image and person. Raises UserError.
    """
    task = TASKS[name]
    kit = Kit(source, task.year)
    classes, samples = kit.samples(task.folder, task.labelled, persons=task.persons)
    keys = sorted(samples)
    images = sorted({key.image for key in keys})
    index = _indexed(kit, images, samples, cache, progress)
    row_of = {image: row for row, image in enumerate(images)}
    image = np.array([row_of[key.image] for key in keys], np.int64)
    nothing = (0,) * len(classes)
    wanted = _wanted(task, classes)
    rows = {
        part: np.array([row for row, key in enumerate(keys) if samples[key].set == part], np.int64)
        for part in ("train", "val", "test")
    }
    public = "test" in task.labelled
    return TransferSet(
        name=name,
        index=index,
        classes=tuple(classes[number] for number in wanted),
        measure=facts().transfer[name].measure,
        image=image,
        targets=np.array([samples[key].labels or nothing for key in keys], np.int8)[:, wanted],
        partitions=[Partition(rows["train"], rows["val"], rows["test"])]
        if public
        else [Partition(*_drawn(rows["train"], image, seed), rows["val"])],
        submission=None if public or not len(rows["test"]) else Partition(rows["train"], rows["val"], rows["test"]),
        boxes=_boxes(kit, keys, samples, index.split("val").size[image]) if task.persons else None,
        names=[f"{key.image} {key.person}" if task.persons else key.image for key in keys],
    )


def _wanted(task: _Task, classes: Sequence[str]) -> list[int]:
    """Numbers of the classes that are learnt."""
    return [number for number, called in enumerate(classes) if not (task.persons and called == _DISTRACTORS)]


def _drawn(rows: Ints, image: Ints, seed: int) -> tuple[Ints, Ints]:
    """(fit, held out): rows of which some images, with all that is in them, are held out."""
    images = np.unique(image[rows])
    if len(images) < 2:
        raise UserError("image set train has one image, and one to learn from and one to decide need two; add images")
    n = max(1, round(value("transfer_held_out") * len(images)))
    held = np.isin(image[rows], images[class_permutation(seed, 0, 0, len(images))[:n]])
    return rows[~held], rows[held]


def listed(name: str, source: Path) -> tuple[int, int, int]:
    """Classes, images and samples that :func:`open_voc` will find; no image and no box is read. Raises UserError."""
    task = TASKS[name]
    kit = Kit(source, task.year)
    classes, samples = kit.samples(task.folder, task.labelled, persons=task.persons)
    images = sorted({key.image for key in samples})
    _members(kit, images, samples)
    return len(_wanted(task, classes)), len(images), len(samples)


def _members(kit: Kit, images: Sequence[str], samples: Mapping[Key, Sample]) -> list[Member]:
    """The files of the images that samples are in. Raises UserError where one is not there."""
    there = kit.files(_IMAGES)
    if lacking := [image for image in images if f"{image}.jpg" not in there]:
        sample = next(sample for key, sample in samples.items() if key.image == lacking[0])
        raise UserError(
            f"{sample.place}: image {lacking[0][:80]} is not in {_IMAGES} (of {len(images)} images {len(lacking)} are "
            f"not); add {kit.archive_of(sample.set)}"
        )
    return [there[f"{image}.jpg"]._replace(class_name=_IMAGES) for image in images]


def _indexed(kit: Kit, images: Sequence[str], samples: Mapping[Key, Sample], cache: Path, progress: Progress) -> Index:
    """The index of the images that samples are in, all of them usable."""
    members = _members(kit, images, samples)
    index = open_members(members, (_IMAGES,), kit.source, cache, progress)
    if rejected := index.split("val").rejected:
        status, place = next(flagged for flagged in index.flagged() if flagged[0].startswith("rejected"))
        raise UserError(
            f"{rejected} images of {kit.source} cannot be used, first {place} ({status.partition(': ')[2]}); replace "
            f"or remove them"
        )
    return index


def _boxes(kit: Kit, keys: Sequence[Key], samples: Mapping[Key, Sample], sizes: Ints) -> NDArray[np.float64]:
    """(samples, 4) each person's box in its image, of that size; edges, px."""
    there = kit.files("Annotations")
    boxes = np.empty((len(keys), 4))
    said: tuple[str, Annotation] | None = None
    for row, (key, (height, width)) in enumerate(zip(keys, sizes.tolist(), strict=True)):
        if said is None or said[0] != key.image:  # persons of one image follow one another
            said = key.image, _annotation(kit, key, samples[key], there)
        annotation = said[1]
        if key.person > len(annotation.objects):
            raise UserError(
                f"{samples[key].place}: person {key.person} is not in {annotation.place}, which has "
                f"{len(annotation.objects)} objects; restore both from {kit.archive_of(samples[key].set)}"
            )
        numbers = annotation.objects[key.person - 1][1]
        box = _in_image(numbers, width, height)
        if isinstance(box, str):
            raise UserError(
                f"{annotation.place}: box {' '.join(numbers)[:80]} of object {key.person} is {box}; restore the "
                f"file from {kit.archive_of(samples[key].set)}"
            )
        boxes[row] = box
    return boxes


def _in_image(numbers: Sequence[str], width: int, height: int) -> Edges | str:
    """Edges of a box as VOC writes it, whose first pixel is 1; or what is wrong with it."""
    edges = edges_of(numbers)
    if isinstance(edges, str):
        return edges
    left, top, right, bottom = edges
    inside = cut_to_image((left - 1, top - 1, right - 1, bottom - 1), width, height)
    return inside[0] if inside else f"outside the image of {width}x{height} px"


def _annotation(kit: Kit, key: Key, sample: Sample, there: Files) -> Annotation:
    file = there.get(f"{key.image}.xml")
    if file is None:
        raise UserError(
            f"{sample.place}: Annotations has no {key.image}.xml, which says person {key.person}'s box; add "
            f"{kit.archive_of(sample.set)}"
        )
    said = parse_voc(contents(file, XML_MOST), place_of(file), (), key.image)
    if isinstance(said, Unread):
        raise UserError(f"{said.place}: {said.reason}; restore it from {kit.archive_of(sample.set)}")
    return said
