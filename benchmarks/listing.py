"""Time to list a data set of ILSVRC-2012's size: names, places and classes, without opening images.

    python benchmarks/listing.py --folder EMPTY_FOLDER [--images 1281167] [--rounds 3] [--other CHECKOUT]

Makes 1000 class folders of small files, and the same as a tar of 1000 tars, then lists them in turns: with
`vggrepro.data.images.sources.find`, with that of another checkout, if one is named, and in the usual way, torchvision's
ImageFolder for folders and `tarfile` for the archive. Prints one JSON object: seconds, all rounds and medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

CLASSES = 1000
OURS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from vggrepro.data.images.sources import find
started = time.perf_counter()
found = find([Path(sys.argv[2])])
print(len(found[0]), time.perf_counter() - started)
"""
FOLDERS = """
import sys, time
from torchvision.datasets import ImageFolder
started = time.perf_counter()
print(sum(len(ImageFolder(f"{sys.argv[2]}/{split}")) for split in ("train", "val")), time.perf_counter() - started)
"""
TARS = """
import sys, tarfile, time
from pathlib import Path
started, n = time.perf_counter(), 0
for file in Path(sys.argv[2]).glob("*.tar"):
    with tarfile.open(file) as tar:
        for member in tar:
            if not member.name.endswith(".tar"):
                n += 1
                continue
            with tarfile.open(fileobj=tar.extractfile(member)) as inner:
                n += sum(1 for _ in inner)
print(n, time.perf_counter() - started)
"""


def make(folder: Path, images: int) -> dict[str, Path]:
    """Images of ILSVRC's names, of 100 bytes each."""
    folders, tars = folder / "folders", folder / "tars"
    tars.mkdir(parents=True)
    wnids = [f"n{1440000 + 7 * number:08}" for number in range(CLASSES)]
    labels = []
    with (tars / "train.tar").open("wb") as train, (tars / "val.tar").open("wb") as val:
        for number, wnid in enumerate(wnids):
            inner = bytearray()
            for split, n in (("train", images // CLASSES + (number < images % CLASSES)), ("val", 50)):
                (folders / split / wnid).mkdir(parents=True)
                for image in range(n):
                    name = f"{wnid}_{image}" if split == "train" else f"ILSVRC2012_val_{number * n + image + 1:08}"
                    (folders / split / wnid / f"{name}.JPEG").write_bytes(b"x" * 100)
                    member = header(f"{name}.JPEG", 100) + b"x" * 100 + bytes(412)
                    if split == "train":
                        inner += member
                    else:
                        val.write(member)
                        labels.append(f"{name}.JPEG {wnid}\n")
            inner += bytes(1024)
            train.write(header(f"{wnid}.tar", len(inner)) + inner)
        train.write(bytes(1024))
        val.write(bytes(1024))
    (tars / "val_labels.txt").write_text("".join(labels))
    return {"folders": folders, "tars": tars}


def header(name: str, size: int) -> bytes:
    """Returns the header of a tar member."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path)
    words = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    sources = make(words.folder, words.images)
    seconds: dict[str, list[float]] = {}
    for _ in range(words.rounds):
        for kind, source in sources.items():
            ways = {"ours": (OURS, here), "usual": (FOLDERS if kind == "folders" else TARS, here)}
            if words.other:
                ways["other"] = (OURS, words.other)
            for way, (script, checkout) in ways.items():
                command = [sys.executable, "-P", "-c", script, str(checkout), str(source)]
                found, took = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                assert int(found) == words.images + 50 * CLASSES, (kind, way, found)
                seconds.setdefault(f"{kind} {way}", []).append(round(float(took), 2))
                print(kind, way, took, file=sys.stderr, flush=True)
    medians = {key: statistics.median(of) for key, of in seconds.items()}
    print(json.dumps({"images": words.images, "seconds": seconds, "medians": medians, "at": time.strftime("%F")}))


if __name__ == "__main__":
    main()
