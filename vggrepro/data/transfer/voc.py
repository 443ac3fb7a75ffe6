"""Opens PASCAL VOC's data sets of Appendix B: classification of VOC 2007 and 2012, and actions of VOC 2012."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.boxes.annotations import XML_MOST, Annotation, Unread, parse_voc
from vggrepro.data.boxes.box_scan import cut_to_image, edges_of
from vggrepro.data.images.archive_members import Member
from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import Progress, open_members
from vggrepro.data.images.tree import contents
from vggrepro.data.sampler import class_permutation
from vggrepro.data.transfer.transfer_set import Partition, TransferSet
from vggrepro.data.transfer.voc_sets import Challenge, Kit, Sample, SampleKey
from vggrepro.data.views import Ints
from vggrepro.errors import UserError
from vggrepro.paper import facts, value

_IMAGES = "JPEGImages"
_DISTRACTORS = "other"  # persons without an action; the development kit neither trains nor measures this class
CHALLENGES = {
    "voc2007": Challenge("2007", "Main", ("train", "val", "test"), persons=False),
    "voc2012": Challenge("2012", "Main", ("train", "val"), persons=False),
    "voc2012_action": Challenge("2012", "Action", ("train", "val"), persons=True),
}


def open_voc(name: str, source: Path, seed: int, cache: Path, progress: Progress) -> TransferSet:
    """Opens a key of `CHALLENGES` from VOCdevkit, a year's folder, a folder that holds these or their tars, or a tar.

    For VOC 2007, val selects hyper-parameters. The labels of VOC 2012's test images are not public, so val is the test
    set, and images drawn from train select hyper-parameters; test images, if present, are samples without labels, the
    test set of `submission`. Samples are ordered by image and person. Raises UserError.
    """
    kit = Kit(source, CHALLENGES[name])
    classes, samples = kit.samples()
    members = _members(kit, samples)
    index = _indexed(kit, list(members.values()), cache, progress)
    row_of = {image: row for row, image in enumerate(members)}
    image = np.array([row_of[key.image] for key in samples], np.int64)
    labels = [sample.labels or (0,) * len(classes) for sample in samples.values()]
    learnt = _learnt_classes(kit, classes)
    sets = np.array([sample.set for sample in samples.values()])
    train, val, test = (np.flatnonzero(sets == part) for part in ("train", "val", "test"))
    published = Partition(train, val, test)
    public, persons = "test" in kit.challenge.labelled, kit.challenge.persons
    return TransferSet(
        name=name,
        index=index,
        classes=tuple(classes[number] for number in learnt),
        measure=facts().transfer[name].measure,
        image=image,
        targets=np.array(labels, np.int8)[:, learnt],
        partitions=[published if public else Partition(*_drawn(train, image, seed), val)],
        submission=None if public or not len(test) else published,
        boxes=_boxes(kit, samples, index.split("val").size[image]) if persons else None,
        names=[f"{key.image} {key.person}" if persons else key.image for key in samples],
    )


def listed(name: str, source: Path) -> tuple[int, int, int]:
    """Counts classes, images and samples without reading images or boxes. Raises UserError."""
    kit = Kit(source, CHALLENGES[name])
    classes, samples = kit.samples()
    return len(_learnt_classes(kit, classes)), len(_members(kit, samples)), len(samples)


def _learnt_classes(kit: Kit, classes: Sequence[str]) -> list[int]:
    """Returns the numbers of the classes that classifiers are trained for."""
    return [n for n, name in enumerate(classes) if not (kit.challenge.persons and name == _DISTRACTORS)]


def _drawn(rows: Ints, image: Ints, seed: int) -> tuple[Ints, Ints]:
    """Divides rows into fit and validation by image, so that persons in the same image stay together."""
    images = np.unique(image[rows])
    if len(images) < 2:
        raise UserError("image set train has one image, but fitting and validation need one each; add images")
    n = max(1, round(value("transfer_held_out") * len(images)))
    is_validation = np.isin(image[rows], images[class_permutation(seed, 0, 0, len(images))[:n]])
    return rows[~is_validation], rows[is_validation]


def _members(kit: Kit, samples: Mapping[SampleKey, Sample]) -> dict[str, Member]:
    """Returns the image files of all samples, by image in order. Raises UserError if a file is missing."""
    files = kit.files(_IMAGES)
    images = dict.fromkeys(key.image for key in samples)
    if missing := [image for image in images if f"{image}.jpg" not in files]:
        sample = next(sample for key, sample in samples.items() if key.image == missing[0])
        raise UserError(
            f"{sample.place}: image {missing[0][:80]} is not in {_IMAGES} ({len(missing)} of {len(images)} images are "
            f"missing); add {kit.archive_of(sample.set)}"
        )
    return {image: files[f"{image}.jpg"]._replace(class_name=_IMAGES) for image in images}


def _indexed(kit: Kit, members: Sequence[Member], cache: Path, progress: Progress) -> Index:
    """Indexes images. Raises UserError unless all are usable."""
    index = open_members(members, (_IMAGES,), kit.source, cache, progress)
    if rejected := index.split("val").rejected:
        status, place = next(flagged for flagged in index.flagged() if flagged[0].startswith("rejected"))
        raise UserError(
            f"{rejected} images of {kit.source} cannot be used, first {place} ({status.partition(': ')[2]}); replace "
            f"or remove them"
        )
    return index


def _boxes(kit: Kit, samples: Mapping[SampleKey, Sample], sizes: Ints) -> NDArray[np.float64]:
    """Reads the persons' boxes, px, shape (samples, 4), given the sizes of the samples' images. Raises UserError."""
    files = kit.files("Annotations")
    boxes = np.empty((len(samples), 4))
    annotations: dict[str, Annotation] = {}
    for row, ((key, sample), (height, width)) in enumerate(zip(samples.items(), sizes.tolist(), strict=True)):
        archive = kit.archive_of(sample.set)
        if key.image not in annotations:  # persons in the same image are consecutive
            annotations = {key.image: _annotation(key, sample, files.get(f"{key.image}.xml"), archive)}
        annotation = annotations[key.image]
        if key.person > len(annotation.objects):
            raise UserError(
                f"{sample.place}: person {key.person} is not in {annotation.place}, which has "
                f"{len(annotation.objects)} objects; restore both from {archive}"
            )
        numbers = annotation.objects[key.person - 1][1]
        edges = edges_of(numbers, first=1)
        inside = edges if isinstance(edges, str) else cut_to_image(edges, width, height)
        if inside is None or isinstance(inside, str):
            problem = inside or f"outside the image of {width}x{height} px"
            raise UserError(
                f"{annotation.place}: box {' '.join(numbers)[:80]} of object {key.person} is {problem}; restore the "
                f"file from {archive}"
            )
        boxes[row], _ = inside
    return boxes


def _annotation(key: SampleKey, sample: Sample, file: Member | None, archive: str) -> Annotation:
    if file is None:
        raise UserError(
            f"{sample.place}: Annotations has no {key.image}.xml with person {key.person}'s box; add {archive}"
        )
    found = parse_voc(contents(file, XML_MOST), file.place, (), key.image)
    if isinstance(found, Unread):
        raise UserError(f"{found.place}: {found.reason}; restore it from {archive}")
    return found
