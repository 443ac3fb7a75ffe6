"""Verification: findings on files that trouble decoders, and workers that die without harming the scan."""

import csv
import ctypes
import errno
import itertools
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import forks, set_up_fork
from PIL import Image
from tiny import TINY

from vggrepro.config.parsing import override
from vggrepro.config.settings import Config, Data
from vggrepro.data import decode
from vggrepro.data.decode import opened, rgb
from vggrepro.data.images import scan as scan_module
from vggrepro.data.images import verify as verify_module
from vggrepro.data.images.archive_members import Member
from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import scan
from vggrepro.data.images.verify import Finding, verify
from vggrepro.data.loading.loader import Loader
from vggrepro.data.report import render
from vggrepro.data.sampler import TrainingSampler
from vggrepro.data.views import rescaled_size, uncropped
from vggrepro.errors import UserError
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.stage import evaluate_stage, train_stage
from vggrepro.storage.directory import RunDirectory


def at(file: str, offset: int, length: int) -> Member:
    return Member("val", "", *os.path.split(file), offset, length, archive=False)


def places(files: Sequence[Path]) -> list[Member]:
    return [at(str(file), 0, file.stat().st_size) for file in files]


@pytest.fixture(scope="module")
def manifest(hard_files: Path) -> list[dict[str, str]]:
    with (hard_files / "MANIFEST.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def verify_and_weigh(files: list[Path], results: Connection) -> None:
    set_up_fork()
    (found,) = verify([places(files)], "full")
    results.send((found, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))


@pytest.fixture(scope="module")
def verified(hard_files: Path, manifest: list[dict[str, str]]) -> tuple[list[Finding], int]:
    """Returns the findings, and the peak memory of their processes, KiB, without other children of the tests."""
    receives, sends = forks.Pipe(duplex=False)
    process = forks.Process(target=verify_and_weigh, args=([hard_files / row["path"] for row in manifest], sends))
    process.start()
    sends.close()
    return receives.recv()


@pytest.fixture(scope="module")
def findings(verified: tuple[list[Finding], int], manifest: list[dict[str, str]]) -> dict[str, Finding]:
    return {row["path"]: finding for row, finding in zip(manifest, verified[0], strict=True)}


def test_statuses_match_the_manifest(manifest: list[dict[str, str]], findings: dict[str, Finding]) -> None:
    assert len(manifest) == len(findings) == 248
    for row in manifest:
        finding = findings[row["path"]]
        elongated = finding.status == "rejected: more than 100 times longer than wide"
        # the manifest's reader read EXIF first, after which PIL accepts these two damaged files
        damaged = row["detail"] == "orientation=exif:OSError"
        if row["pillow_result"] == "LOADS" and not elongated and not damaged:
            assert finding.status.startswith("ok"), row["path"]
            assert f"{finding.width}x{finding.height}" == row["size"], row["path"]
            assert finding.format == row["format"], row["path"]
        else:
            assert finding.status.startswith("rejected: "), row["path"]
        if elongated and row["size"]:
            short, long = sorted(map(int, row["size"].split("x")))
            assert long > 100 * short


def test_oddities_are_reported(findings: dict[str, Finding]) -> None:
    expected = {
        "cmyk/cmyk_adobe_inverted.JPEG": "ok-odd: CMYK",
        "cmyk/ycck_photo.JPEG": "ok-odd: CMYK",
        "exif_rotated/hopper_orientation_6.JPEG": "ok-odd: EXIF rotation",
        "exif_rotated/portrait_1.JPEG": "ok",
        "grayscale/imagenet_n03804744_nail.JPEG": "ok-odd: grey",
        "png_named_jpeg/photo_png_named.JPEG": "ok-odd: PNG",
        "png_named_jpeg/basn3p08_png.JPEG": "ok-odd: PNG, palette",
        "progressive/progressive3.JPEG": "ok-odd: progressive",
        "other_named_jpeg/photo_webp_named.JPEG": "ok-odd: WEBP",
        "unusual_coding/rgb_components.JPEG": "ok-odd: RGB components",
        "bad_metadata/exif_typeerror.JPEG": "ok",
        "corrupt_scan/trailing_garbage.JPEG": "ok",
        "huge_dims/jpg_gray_12000x9000.JPEG": "ok-odd: grey",
        "huge_dims/png_1bit_20000x20000_named.JPEG": "rejected: more than 179 megapixels",
        "huge_dims/lying_header_65535x65535.JPEG": "rejected: more than 179 megapixels",
        "truncated/trunc_50.JPEG": "rejected: truncated",
        "truncated/no_eoi.JPEG": "rejected: truncated",
        "not_image/html_404_named.JPEG": "rejected: not an image",
        "zero_byte/empty.JPEG": "rejected: empty file",
    }
    assert {path: findings[f"val/{path}"].status for path in expected} == expected


def test_memory_stays_below_2_gb(verified: tuple[list[Finding], int]) -> None:
    assert 1e4 < verified[1] < 2e6


@pytest.fixture(scope="module")
def hard_index(hard_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Indexes the hard files as training images of classes named after their kinds, and as validation images."""
    root = tmp_path_factory.mktemp("hard_index")
    for kind in sorted((hard_files / "val").iterdir()):
        for split in ("train", "val"):
            (root / split).mkdir(exist_ok=True)
            (root / split / kind.name).symlink_to(kind)
    return scan([root], "full")


def test_the_index_counts_hard_files(hard_index: Index) -> None:
    found = hard_index.summary()
    assert found["images"] == 2 * 248
    assert found["usable"] + found["rejected"] == 2 * 248
    assert found["rejected"] == 2 * (146 + 5 + 2)  # by the manifest; elongated; damaged (see above)
    assert len(hard_index.split("train")) == len(hard_index.split("val")) == 248 - 153


def test_the_report_distinguishes_odd_and_rejected_images(hard_index: Index) -> None:
    found, lines = hard_index.summary(), list(render(hard_index, names=False))
    (odd,), (rejected,) = (
        [n for n, line in enumerate(lines) if line.startswith(f"  {word} ")] for word in ("usable", "rejected")
    )
    rows = [line.split(maxsplit=1) for line in lines]
    assert {reason: int(n) for n, reason in rows[odd + 1 : rejected]} == found["by_reason"]["odd"]
    assert {reason: int(n) for n, reason in rows[rejected + 1 :]} == found["by_reason"]["rejected"]
    assert {"grey", "CMYK"} <= found["by_reason"]["odd"].keys()
    assert {"truncated", "empty file"} <= found["by_reason"]["rejected"].keys()
    assert found["odd"] == sum(found["by_reason"]["odd"].values())


def test_every_usable_file_is_trained_on_and_tested(hard_index: Index, backend: str) -> None:
    """Both backends render every hard file, none replaced, with the pixels of PIL's rescaling."""
    split = hard_index.split("train")
    small = np.flatnonzero(split.size.prod(axis=1) < 2e6)
    sampler = TrainingSampler(split.size, Data(S=(32, 64)), 32, seed=0)
    loader = Loader(backend, (0.0, 0.0, 0.0), 2, torch.device("cpu"))
    seen = []
    for batch in loader.batches(split, (sampler.views(first, 10) for first in range(0, len(split), 10))):
        seen += batch.views.image[: len(split) - len(seen)].tolist()
        assert batch.images.isfinite().all()
    assert sorted(seen) == list(range(len(split)))
    assert not loader.bad.reasons
    rescaled = rescaled_size(split.size, 32)
    short = [row for row in small if rescaled[row].max() < 400]
    stream = [uncropped(np.array([row]), split.size[[row]], rescaled[[row]]) for row in short]
    for row, batch in zip(short, loader.batches(split, stream), strict=True):
        with opened(split.read(row)) as image:
            expected = rgb(image).resize(tuple(rescaled[row][::-1]), Image.Resampling.BILINEAR)
        error = np.abs(batch.images[0].permute(1, 2, 0).numpy() - np.asarray(expected, np.float32))
        assert error.max() <= 1, split.name_of(row)


def test_a_net_trains_and_is_tested_on_hard_files(hard_index: Index, tmp_path: Path) -> None:
    """Runs training and testing on the usable files, with the others permitted to be missing."""
    file, rejected = tmp_path / "hard.idx", hard_index.split("val").rejected
    hard_index.save(file)
    texts = [*TINY, f"model.classes={len(hard_index.classes)}", "train.iterations=24", f"run.root={tmp_path / 'runs'}"]
    stage = override(Config(model={"net": "A"}), [*texts, f"data.index={file}"], file)
    with (
        open_session([stage]) as session,
        pytest.raises(UserError, match=f"set data.max_rejected_val={rejected} to test"),
    ):
        session.index(stage)
    stage = override(stage, [f"data.max_rejected_val={rejected}"], file)
    with open_session([stage]) as session:
        train_stage(stage, None, session)
        evaluate_stage(stage, None, session)
    run = RunDirectory(stage.directory)
    trained = list(run.records("train"))
    assert trained[-1]["step"] * 8 > len(hard_index.split("train")), "every image was used"
    assert {record["bad_images"] for record in trained} == {0}
    (tested,) = run.records("evaluation")
    assert tested["n"] == len(hard_index.split("val")) == 248 - rejected
    departures = {line["setting"]: line["run"] for line in run.read_json("ledger.json")}
    assert departures["data.rejected.train"] == departures["data.rejected.val"] == rejected


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    with opened((tmp_path / "ramp.png").read_bytes()) as image:
        assert image.mode.startswith("I")
        pixels = np.asarray(rgb(image))
    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))


DEADLY = """
import os, signal, sys, time
from vggrepro.data.images import verify
def inspect(image, how, mean):
    if "crash" in image.file: os.kill(os.getpid(), signal.SIGSEGV)
    if "exit" in image.file: os._exit(3)
    if "hang" in image.file: time.sleep(60)
    if "kill" in image.file: os.kill(os.getpid(), signal.SIGKILL)
    return verify.Finding(10, 20, "JPEG", "ok")
verify.inspect = inspect
sys.argv[1:] = ["full"]
verify.main()
"""


def let_workers_be(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    original = verify_module._Worker.__init__

    def changed(worker: verify_module._Worker, how: verify_module.How, mean: bool) -> None:
        original(worker, how, mean)
        worker._command = (
            [*command] if command[0] != "ulimit" else ["/bin/sh", "-c", LIMITED, *command[1:], *worker._command]
        )

    monkeypatch.setattr(verify_module._Worker, "__init__", changed)


LIMITED = 'ulimit "$0" "$1"; shift; exec "$@"'


def test_a_decoder_that_dies_or_hangs_rejects_only_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a worker with a broken decoder."""
    monkeypatch.setattr(verify_module, "_SILENCE_S", 1.0)
    let_workers_be(monkeypatch, sys.executable, "-c", DEADLY)
    names = ["a", "crash1", "b", "crash2", "crash3", "hang", "c", "exit", "d"]
    chunks = [[at(name, 0, 1) for name in names], [at(name, 0, 1) for name in "ef"]]
    found = [[finding.status for finding in chunk] for chunk in verify(chunks, "full")]
    crashed, ended = "rejected: its decoder was killed by SIGSEGV", "rejected: its decoder ended with status 3"
    assert found[0] == ["ok", crashed, "ok", crashed, crashed, "rejected: not finished after 1 s", "ok", ended, "ok"]
    assert found[1] == ["ok", "ok"]


def test_a_worker_killed_from_outside_is_replaced(photographs: Path) -> None:
    """The kernel kills a worker like this when memory runs out."""
    files = sorted(photographs.rglob("*.JPEG"))
    worker = verify_module._Worker("full", False)
    try:
        worker.findings(places(files[:1]))
        assert worker._process
        os.kill(worker._process.pid, signal.SIGKILL)
        found = worker.findings(places(files))
        assert [finding.status for finding in found] == ["ok"] * len(files)
    finally:
        worker.stop()


def test_unreadable_files_are_rejected(tmp_path: Path) -> None:
    ((finding,),) = verify([[at(str(tmp_path / "gone.JPEG"), 0, 10)]], "header")
    assert finding.status == "rejected: unreadable (No such file or directory)"


def test_headers_longer_than_the_first_read_are_found(tmp_path: Path, photographs: Path) -> None:
    image = next(photographs.rglob("*.JPEG")).read_bytes()
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
    (tmp_path / "long.JPEG").write_bytes(image[:2] + 3 * comment + image[2:])
    ((finding,),) = verify([places([tmp_path / "long.JPEG"])], "header")
    assert finding.status == "ok"


# Failures of the machine


def test_a_killed_decoder_rejects_its_image_unless_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    let_workers_be(monkeypatch, sys.executable, "-c", DEADLY)
    chunks = [[at("a", 0, 1), at("kill", 0, 1), at("b", 0, 1)]]
    (found,) = verify(chunks, "full")
    assert [finding.status for finding in found] == ["ok", "rejected: its decoder was killed by SIGKILL", "ok"]
    kills = itertools.count()
    monkeypatch.setattr(verify_module, "_count_oom_kills", lambda: next(kills))
    with pytest.raises(
        UserError, match=r"^kill: its decoder was killed by SIGKILL because memory ran out; give the job more memory$"
    ):
        list(verify(chunks, "full"))


def test_an_unresponsive_file_system_rejects_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "_SILENCE_S", 1.0)
    let_workers_be(monkeypatch, sys.executable, "-c", DEADLY)
    assert not verify_module._waits_for_disk(os.getpid())
    monkeypatch.setattr(verify_module, "_waits_for_disk", lambda process: True)
    with pytest.raises(UserError, match=r"^hang cannot be read \(not finished after 1 s\); is the file system"):
        list(verify([[at("a", 0, 1), at("hang", 0, 1)]], "full"))


def test_linux_counts_oom_kills() -> None:
    if "\noom_kill " not in Path("/proc/vmstat").read_text():
        pytest.skip("this one does not")
    assert verify_module._count_oom_kills() >= 0


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((sys.executable, "-c", "import sys; sys.exit('no such luck')"), "no such luck"),
        ((sys.executable, "-c", "import os; os._exit(3)"), "it ended with status 3"),
        ((sys.executable, "-c", "import time; time.sleep(60)"), "not ready after 2 s"),
        (("/nowhere/python",), ".*No such file or directory.*"),
        (("ulimit", "-v", "60000"), ".+"),
    ],
)
def test_a_worker_that_cannot_start_rejects_no_image(
    command: tuple[str, ...], reason: str, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "_START_S", 2.0 if "sleep" in command[-1] else 60.0)
    let_workers_be(monkeypatch, *command)
    with pytest.raises(
        UserError, match=rf"^a process that inspects images cannot start \({reason}\); raise `ulimit -u`"
    ):
        list(verify([places(sorted(photographs.rglob("*.JPEG")))], "full"))


def test_running_out_of_threads_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(UserError, match=r"images cannot be inspected \(can't start new thread\); raise `ulimit -u`"):
        list(verify([[at("a", 0, 1)]], "full"))


def test_a_lower_memory_limit_is_respected(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker respects the limit, and an image that exceeds it is not rejected."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # each takes address space
    let_workers_be(monkeypatch, "ulimit", "-v", "250000")
    files = sorted(photographs.rglob("*.JPEG"))
    (found,) = verify([places(files)], "full")
    assert {finding.status for finding in found} == {"ok"}
    Image.new("L", (13_000, 13_000)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large.png cannot be decoded in 244 MiB of memory; raise `ulimit -v`$"):
        list(verify([places([tmp_path / "large.png"])], "full"))


def test_an_image_that_exceeds_a_workers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Finding:
        raise MemoryError

    monkeypatch.setattr(verify_module, "inspect", full)
    image = at("a", 0, 1)
    found = verify_module._finding_or_failure(image, "full", False, verify_module._MEMORY_BYTES)
    assert found == Finding(0, 0, "", "rejected: out of memory")
    failure = verify_module._finding_or_failure(image, "full", False, 1 << 30)
    assert isinstance(failure, UserError)
    assert str(failure) == "a cannot be decoded in 1024 MiB of memory; raise `ulimit -v`"


FAILING = """
import os, sys
from vggrepro.data.images import verify
def inspect(image, how, mean):
    if "NEVER" in image.file or "ONCE" in image.file and not os.path.exists(image.file):
        if "ONCE" in image.file: open(image.file, "w").close()
        raise OSError(ERRNO, os.strerror(ERRNO))
    return verify.Finding(10, 20, "JPEG", "ok")
verify.inspect = inspect
sys.argv[1:] = ["full"]
verify.main()
"""


def let_workers_fail(monkeypatch: pytest.MonkeyPatch, number: int, *waits: float) -> None:
    monkeypatch.setattr(decode, "_WAITS_S", waits)
    monkeypatch.setattr(decode, "_warned", {})
    monkeypatch.setattr(decode, "_given_up", {})
    let_workers_be(monkeypatch, sys.executable, "-c", FAILING.replace("ERRNO", str(number)))


def test_workers_retry_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_workers_fail(monkeypatch, errno.ESTALE, 0.01)
    chunks = [[at(str(tmp_path / f"{chunk}{name}"), 0, 1) for name in ("a", "ONCE", "b", "ONCE2")] for chunk in "xy"]
    assert [[finding.status for finding in chunk] for chunk in verify(chunks, "full")] == [["ok"] * 4] * 2
    let_workers_fail(monkeypatch, errno.ESTALE, 0.01)
    with pytest.raises(UserError, match=r"^zNEVER cannot be read \(Stale file handle\); is the file system mounted"):
        list(verify([*chunks, [at("b", 0, 1), at("zNEVER", 0, 1)]], "full"))
    assert capsys.readouterr().err == "zNEVER cannot be read (Stale file handle); trying again for 0 s\n"


def test_a_scan_resumes_after_such_an_end(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    closed = sorted((tmp_path / "data" / "train").rglob("*.JPEG"))[9]
    closed.rename(closed := closed.with_name(f"{closed.stem}_NEVER.JPEG"))
    monkeypatch.setattr(scan_module, "_CHUNK", 4)
    journal = tmp_path / "journal"
    with pytest.MonkeyPatch.context() as patched:
        let_workers_fail(patched, errno.EACCES, 600.0)
        with pytest.raises(
            UserError, match=rf"^{closed} cannot be read \(Permission denied\); change its permissions$"
        ):
            scan([tmp_path / "data"], "full", journal=journal)
    assert len(journal.read_text().splitlines()) == 2
    assert scan([tmp_path / "data"], "full", journal=journal).summary()["usable"] == 32


def test_a_file_without_permission_is_an_error(photographs: Path, tmp_path: Path) -> None:
    """Drops root's capabilities, so that permissions are real."""
    shutil.copytree(photographs, tmp_path / "data")
    file = next((tmp_path / "data").rglob("*.JPEG"))
    file.chmod(0)
    receives, sends = forks.Pipe(duplex=False)
    process = forks.Process(target=verify_without_privileges, args=(file, sends))
    process.start()
    sends.close()
    assert receives.recv() == f"{file} cannot be read (Permission denied); change its permissions"


def verify_without_privileges(file: Path, results: Connection) -> None:
    set_up_fork()
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: programs that are started have them no more
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    try:
        list(verify([places([file])], "header"))
    except UserError as error:
        results.send(str(error))
