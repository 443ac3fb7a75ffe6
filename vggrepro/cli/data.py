"""The verbs that look at a data set: its images, and the boxes of what they show; and one that rewrites tables."""

from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer

from vggrepro.cli.options import JsonOption, QuietOption, show
from vggrepro.errors import UserError


def index(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Where the images are: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the development kit "
            "(or meta.bin, LOC_val_solution.csv, a list of labels), a folder that holds these, a folder with train/ "
            "and val/, Kaggle's tree, Tiny ImageNet's, WebDataset shards, tables of Parquet. Validation images alone "
            "are enough for testing. Nothing is extracted."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index file to write.")],
    verify: Annotated[
        Literal["full", "header"], typer.Option(help="Decode every image once, or read its header only.")
    ] = "full",
    classes: Annotated[
        str | None,
        typer.Option(
            help="All classes, where the images are of some of them only: a file with a name or wnid on a line, the "
            "development kit, or ilsvrc2012 for its 1000."
        ),
    ] = None,
    mean: Annotated[bool, typer.Option("--mean", help="Compute the mean colour of the training images.")] = False,
    md5: Annotated[bool, typer.Option("--md5", help="Compare ILSVRC's archives with their published MD5.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Name every image that is odd or rejected.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find and check images where they lie: counts, labels, sizes, odd and unreadable files."""
    from vggrepro.data.images.scan import scan
    from vggrepro.data.images.sources import check_md5
    from vggrepro.data.report import render
    from vggrepro.progress import progress

    if mean and verify == "header":
        raise UserError("--mean needs the pixels, but --verify header decodes nothing; use --verify full")
    _check_out(out, "images.idx")
    if md5:
        with progress("MD5", None) as update:
            check_md5(sources, lambda done, total: update(done, f"of {total} MiB", total=total))
    with progress("looking at images", None) as update:
        made = scan(
            sources,
            verify,
            classes=classes,
            mean=mean,
            journal=out.with_name(f".{out.name}.partial"),
            found=lambda images: update(0, f"of {images} found so far"),
            progress=lambda done, total: update(done, f"of {total}", total=total),
        )
    made.save(out)
    show(made.summary(), chain(render(made, names=report), [f"wrote {out}"]), as_json)


def repack(
    sources: Annotated[list[Path], typer.Argument(help="Tables of Parquet with images, or folders that hold them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to; SHA256SUMS comes with the tables.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write compressed tables of Parquet once more, so that images are read in place; every bit of them stays.

    Each table is compared with its source before it counts. The same command goes on where it was interrupted.
    """
    from vggrepro.data.images.parquet import repack
    from vggrepro.progress import progress

    with progress("repacking", None) as update:
        tables = repack(sources, out, lambda done, total: update(done, f"of {total} MiB", total=total))
    wrote = f"wrote {len(tables)} tables to {out}; index them with `vggrepro index {out} --out FILE`"
    show({"tables": [str(table) for table in tables]}, [wrote], as_json)


def boxes(
    images: Annotated[
        str, typer.Argument(help="An index file made by `vggrepro index`, a folder of images, or builtin:digits.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Where the boxes are: ILSVRC2012_bbox_train_v2.tar.gz and ILSVRC2012_bbox_val_v3.tgz, a folder of XML "
            "files, LOC_train_solution.csv and LOC_val_solution.csv, Tiny ImageNet's tables, a table of one's own with "
            "the columns file, xmin, ymin, xmax, ymax. Default: those beside the images."
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Name every box and file that is clipped, left out or unread.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find and check the boxes of objects (Appendix A): which images have some, what does not fit."""
    from vggrepro.config.settings import Run
    from vggrepro.data.boxes.box_scan import open_boxes, read_boxes
    from vggrepro.data.images import sample_set
    from vggrepro.data.images.index import load
    from vggrepro.data.images.scan import open_index
    from vggrepro.data.report import render_boxes
    from vggrepro.progress import progress

    _check_out(out, "boxes.npz")
    runs = Run().root
    cache = runs / "index"
    root = sample_set.ensure(runs / "data") if images == sample_set.ROOT else Path(images)
    if not root.exists():
        raise UserError(f"{images} does not exist; give an index file, a folder of images, or {sample_set.ROOT}")
    with progress("looking at images", None) as update:
        index = (
            load(root)
            if root.is_file()
            else open_index(str(root), None, cache, lambda done, total: update(done, f"of {total}", total=total))
        )
    with progress("reading annotations", None) as update:

        def read(annotations: int) -> None:
            update(annotations, "")

        found = (
            read_boxes(index, sources, read)
            if sources
            else open_boxes(index, None, root if root.is_dir() else None, cache, read)
        )
    found.save(out)
    show(found.summary(), chain(render_boxes(found, names=report), [f"wrote {out}"]), as_json)


def _check_out(out: Path, example: str) -> None:
    if out.is_dir() or not out.name:
        raise UserError(f"--out {out} is a folder; name the file to write in it, e.g. {out / example}")
