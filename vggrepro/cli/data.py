"""Verbs for data sets: index images, read boxes, rewrite Parquet tables."""

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
        Literal["full", "header"], typer.Option(help="Decode every image, or read headers only.")
    ] = "full",
    classes: Annotated[
        str | None,
        typer.Option(
            help="All classes, if the images cover only some of them: a file with a name or wnid per line, the "
            "development kit, or ilsvrc2012 for its 1000."
        ),
    ] = None,
    mean: Annotated[bool, typer.Option("--mean", help="Compute the mean colour of the training images.")] = False,
    md5: Annotated[bool, typer.Option("--md5", help="Compare ILSVRC's archives with the published MD5 sums.")] = False,
    report: Annotated[bool, typer.Option("--report", help="List every odd or rejected image.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Index images in place: counts, labels, sizes, odd and unreadable files."""
    from vggrepro.data.images.scan import scan
    from vggrepro.data.images.sources import check_md5
    from vggrepro.data.report import render
    from vggrepro.progress import progress

    if mean and verify == "header":
        raise UserError("--mean requires pixels, but --verify header decodes none; use --verify full")
    _check_out(out, "images.idx")
    if md5:
        with progress("MD5", None) as update:
            check_md5(sources, lambda done, total: update(done, f"of {total} MiB", total=total))
    with progress("indexing images", None) as update:
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
    sources: Annotated[list[Path], typer.Argument(help="Parquet tables with images, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the tables and their SHA256SUMS.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rewrite compressed Parquet tables so that images can be read in place, without changing a byte of an image.

    Each table is compared with its source before it is renamed into place. The same command resumes after an
    interruption.
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
            "files, LOC_train_solution.csv and LOC_val_solution.csv, Tiny ImageNet's tables, your own table with "
            "the columns file, xmin, ymin, xmax, ymax. Default: those beside the images."
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="List every clipped or omitted box and every unread file.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read and check object boxes (Appendix A): images with boxes, annotations that do not fit."""
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
    with progress("indexing images", None) as update:
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
        raise UserError(f"--out {out} is a folder; name a file in it, e.g. {out / example}")
