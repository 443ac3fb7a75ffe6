"""Public Python API: its documentation page runs, and each function matches the command of the same purpose."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from programs import run_program
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, REPOSITORY, TWO_STEPS, link_digits, tiny_graph
from torch import Tensor

import vggrepro
from vggrepro import api
from vggrepro.config.recipes import Graph, load_graph, load_resolved
from vggrepro.data.loading.loader import make_loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.models.table1 import TORCHVISION_NAMES
from vggrepro.pipeline.evaluate import evaluate_nets
from vggrepro.pipeline.graph import reproduce
from vggrepro.pipeline.weights import export_weights, import_weights

FEW = ("tracking.mlflow=false", "model.width=0.015625", "evaluation.batch=100", "evaluation.multi_Q=[128]")
PAGE = REPOSITORY / "docs" / "notebook.md"


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def graph(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Runs of A and of D from A after `vggrepro reproduce` with two steps each."""
    graph = tiny_graph("demo.yaml", images, tmp_path_factory.mktemp("api") / "runs", *TWO_STEPS)
    reproduce(graph)
    return graph


@pytest.fixture(scope="module")
def run(graph: Graph) -> Path:
    return graph.stages["D"].directory


def test_the_import_is_light_and_all_names_resolve() -> None:
    code = "import sys, vggrepro; print('torch' in sys.modules, 'vgg' in dir(vggrepro), vggrepro.vgg.__name__)"
    assert run_program("-c", code, check=True).stdout.split() == ["False", "True", "vgg"]
    assert all(getattr(vggrepro, name) is getattr(api, name) for name in vggrepro.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'vvg'"):
        _ = vggrepro.vvg
    documented = PAGE.read_text()
    missing = {name for name in vggrepro.__all__ if f"vggrepro.{name}" not in documented}
    assert missing == {"Batch", "Index", "Pretrained", "Report", "Scored", "VGG"}, "types, which are not called"


@pytest.fixture
def quick_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torchvision, timm and torch's layers start from zeros: drawing their 700 million weights takes seconds."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_"):
        draw = getattr(torch.nn.init, name)

        def fill(tensor: Tensor, *arguments: Any, draw: Any = draw, **options: Any) -> Tensor:
            # the package draws with generators, and is left alone
            return draw(tensor, *arguments, **options) if options.get("generator") else tensor.detach().zero_()

        monkeypatch.setattr(torch.nn.init, name, fill)


@pytest.mark.usefixtures("quick_init")
def test_the_page_runs(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs the page statement by statement, and checks the shapes that its comments state."""
    monkeypatch.chdir(tmp_path)
    link_digits(digits, Path("runs/data"), Path(api._CACHE))
    reproduce(load_graph(CONFIGS / "demo.yaml", [*TWO_STEPS, *FEW]))
    capsys.readouterr()
    named: dict[str, Any] = {}
    shapes = 0
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for statement in ast.parse(block).body:
            exec(compile(ast.Module([statement], []), "notebook.md", "exec"), named)
            shape = re.search(r"# \(([\d, ]+)\)", block.splitlines()[statement.end_lineno - 1])  # type: ignore[operator]
            if shape and isinstance(statement, ast.Assign):
                assert str(tuple(named[ast.unparse(statement.targets[0])].shape)) == f"({shape[1]})"
                shapes += 1
    assert shapes == 4
    assert (named["a"].net.architecture.name, named["b"].net.architecture.name) == ("A", "B")
    assert (named["tested"].values.shape, len(named["train"])) == ((500, 10), 2000)
    assert "Table 3" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_torchvisions_names_are_torchvisions_nets(name: str) -> None:
    import torchvision

    small = {"classes": 5, "crop": 32, "width": 1 / 16}
    ours = vggrepro.vgg(name, **small)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    column = {there: here for here, there in TORCHVISION_NAMES.items()}[name.removesuffix("_bn")]
    same = vggrepro.vgg(column, **small)
    if not name.endswith("_bn"):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), same.parameters(), strict=True))


def test_unknown_nets_and_crops_are_refused() -> None:
    with pytest.raises(vggrepro.UserError, match="net 'resnet50' is not in Table 1"):
        vggrepro.vgg("resnet50")
    with pytest.raises(vggrepro.UserError, match="crop 100"):
        vggrepro.vgg("D", crop=100)


def test_loading_from_a_run_a_checkpoint_and_an_export(run: Path, tmp_path: Path) -> None:
    export_weights(run, tmp_path / "D.safetensors")
    export_weights(run, tmp_path / "D.pth")
    moved = tmp_path / "moved.bin"
    moved.write_bytes((run / "checkpoints" / "final.pt").read_bytes())
    sources = [run, run / "checkpoints" / "final.pt", moved, tmp_path / "D.safetensors"]
    loaded = [vggrepro.load(source) for source in sources]
    assert len({model.weights for model in loaded}) == 1
    assert {model.mean for model in loaded} == {(123.68, 116.779, 103.939)}
    assert {model.std for model in loaded} == {(1.0, 1.0, 1.0)}
    assert len({model.classes for model in loaded}) == 1
    plain = vggrepro.load(tmp_path / "D.pth", net="D", input="paper")
    assert (plain.weights, plain.mean, plain.classes) == (loaded[0].weights, loaded[0].mean, None)
    images = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    assert torch.equal(loaded[0](images), loaded[3](images))
    by_hand = vggrepro.class_scores(loaded[0].net, images.float() - torch.tensor(loaded[0].mean).view(3, 1, 1))
    torch.testing.assert_close(loaded[0](images), by_hand.softmax(dim=1))


def test_an_imported_net_keeps_its_test_settings(graph: Graph, run: Path, tmp_path: Path) -> None:
    """S, Q and mirroring are stored with the weights, so that an imported net has the model card's errors."""
    home, out = graph.stages["D"], tmp_path / "published" / "D"
    export_weights(run, tmp_path / "D.safetensors")
    import_weights(tmp_path / "D.safetensors", out)
    (there,) = evaluate_nets([out], ["dense"], None, [f"data.root={home.data.root}", "tracking.mlflow=false"]) or ()
    assert (there.net.config.data.S, there.net.config.multi_Q) == (home.data.S, home.multi_Q)
    assert (there.Q, there.net.config.evaluation.flip) == (home.single_Q, home.evaluation.flip)
    at_home = vggrepro.stored_posteriors(run).measured
    assert there.scored("dense", there.Q).measured == at_home
    (note,) = (run for group in vggrepro.tables(out).groups for run in group.runs)
    assert note.imported
    assert "| - | imported |" in vggrepro.to_markdown(vggrepro.tables(out)), "neither its seed nor its steps are known"
    export_weights(out, tmp_path / "again.safetensors")
    import_weights(tmp_path / "again.safetensors", tmp_path / "published" / "again")
    assert load_resolved(tmp_path / "published" / "again" / "config.yaml").data.S == home.data.S


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "none cannot be read"),
        (lambda folder: folder, "is not a run directory"),
        (lambda folder: (folder / "x.pt").write_bytes(b"PK\x03\x04 torn") and folder / "x.pt", "cannot be read"),
    ],
)
def test_weights_that_cannot_be_loaded(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(vggrepro.UserError, match=message):
        vggrepro.load(make(tmp_path))


def fc_as_convolutions(state: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """State dict with timm's names and shapes."""
    timms = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    kernel = {"classifier.0.weight": side, "classifier.3.weight": 1}
    named = {}
    for key, tensor in state.items():
        layer, _, part = key.rpartition(".")
        shaped = tensor.unflatten(1, (-1, kernel[key], kernel[key])) if key in kernel else tensor
        named[f"{timms.get(layer, layer)}.{part}"] = shaped.contiguous()
    return named


@pytest.mark.parametrize("net", ["B", "D"])
def test_timms_files_are_the_same_nets(net: str, tmp_path: Path) -> None:
    native = vggrepro.vgg(net, classes=7, crop=64, width=1 / 16, init="kaiming").eval()
    save_file(fc_as_convolutions(native.state_dict(), side=2), tmp_path / "model.safetensors")
    found = vggrepro.load(tmp_path / "model.safetensors")
    assert found.net.architecture == native.architecture
    assert found.std == pytest.approx((58.395, 57.12, 57.375)), "torchvision's normalisation, which timm's have, too"
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(found.net(images), native(images))


@pytest.mark.slow
@pytest.mark.parametrize(("net", "name"), sorted(TORCHVISION_NAMES.items()))
def test_exports_load_into_torchvision_and_timm_at_full_size(net: str, name: str, tmp_path: Path) -> None:
    """Exports and a file saved by timm all give the same scores."""
    import timm
    import torchvision

    native = vggrepro.vgg(net, classes=7, init="kaiming").eval()
    save_file(native.state_dict(), tmp_path / "ours.safetensors")
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    theirs.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    overlay = {"file": str(tmp_path / "ours.safetensors"), "num_classes": 7}
    timms = timm.create_model(name, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay).eval()
    save_file(timms.state_dict(), tmp_path / "timm.safetensors")
    back = vggrepro.load(tmp_path / "timm.safetensors", net=net)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        scores = native(images)
        for other in (theirs, timms, back.net):
            torch.testing.assert_close(other(images), scores)


def test_images_from_a_folder_an_index_and_with_all_classes(images: Path, tmp_path: Path) -> None:
    folder = vggrepro.open_images(images, cache=tmp_path)
    folder.save(tmp_path / "own.idx")
    assert vggrepro.open_images(tmp_path / "own.idx").fingerprint == folder.fingerprint
    (tmp_path / "classes.txt").write_text("\n".join([*folder.classes, "zebra"]))
    assert vggrepro.open_images(images, classes=str(tmp_path / "classes.txt")).classes[-1] == "zebra"
    with pytest.raises(vggrepro.UserError, match="does not exist"):
        vggrepro.open_images(tmp_path / "nothing")


@pytest.fixture
def few(images: Path, tmp_path: Path) -> vggrepro.Index:
    return vggrepro.open_images(images, cache=tmp_path)


def test_training_batches_are_those_of_training(graph: Graph, few: vggrepro.Index) -> None:
    config, split = graph.stages["A"], few.split("train")
    loader = make_loader(config.data, torch.device("cpu"))
    sampler = TrainingSampler(split.size, config.data, config.model.crop, config.run.seed)
    size = config.train.batch
    expected = list(loader.batches(split, [sampler.views(step * size, size) for step in range(3)]))
    data = config.data
    settings: dict[str, Any] = {
        "S": data.S, "crop": config.model.crop, "batch": size, "seed": config.run.seed, "flip": data.flip,
        "colour_shift": data.colour_shift.mode, "backend": data.backend,
    }  # fmt: skip
    found = list(vggrepro.training_batches(few, steps=3, **settings))
    later = list(vggrepro.training_batches(few, first=2, steps=1, **settings))
    for batch, other in zip([*found, *later], [*expected, expected[2]], strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)
    assert isinstance(vggrepro.training_batches(few, **settings), Iterator), "without steps there is no end"


def test_uncropped_batches_show_each_image_once(few: vggrepro.Index, run: Path) -> None:
    model = vggrepro.load(run)
    rows = []
    for batch in vggrepro.uncropped_batches(few, 40, crop=32, input=model):
        assert min(batch.images.shape[-2:]) == 40
        rows += batch.views.image.tolist()
    assert sorted(rows) == list(range(len(few.split("val"))))


@pytest.mark.parametrize("method", ["dense", "both", "centre"])
@pytest.mark.parametrize("Q", [40, (37, 40)])
def test_posteriors_are_those_that_evaluate_stores(
    graph: Graph, few: vggrepro.Index, run: Path, method: Any, Q: int | tuple[int, ...]
) -> None:
    sides = (Q,) if isinstance(Q, int) else Q
    config = graph.stages["D"]
    evaluate_nets([run], [method], sides, [f"data.root={config.data.root}"])
    stored = vggrepro.stored_posteriors(run, method, Q)
    settings = config.evaluation
    found = vggrepro.posteriors(
        vggrepro.load(run), few, Q, method=method, flip=settings.flip, batch=settings.batch, backend=config.data.backend
    )
    assert found.Q == stored.Q == sides
    np.testing.assert_array_equal(found.labels, stored.labels)
    np.testing.assert_allclose(found.values, stored.values, atol=1e-6)
    assert found.measured.top1.percent == stored.measured.top1.percent


def test_posteriors_and_tables_of_runs(graph: Graph, run: Path) -> None:
    A, D = (vggrepro.stored_posteriors(graph.stages[name].directory) for name in "AD")
    np.testing.assert_allclose(vggrepro.fuse([A, D]).values, (A.values + D.values) / 2, atol=1e-7)
    report = vggrepro.tables(run.parent)
    measured = {row.net: row.top1.measured for row in report.rows if row.table == 3 and row.run}
    assert measured == {"A": A.measured.top1.percent, "D": D.measured.top1.percent}
    assert "### Table 3" in vggrepro.to_markdown(report)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda few, model: vggrepro.posteriors(model, few, 16), "Q=16 is smaller than the net's crop=32"),
        (lambda few, model: vggrepro.posteriors(model, few, ()), "is smaller than the net's crop=32"),
        (lambda few, model: vggrepro.training_batches(few, S=100), "S=100 is smaller than crop=224"),
        (lambda few, model: vggrepro.training_batches(few, S=(256, 128)), "S=.* is not allowed: the range must rise"),
        (lambda few, model: vggrepro.training_batches(few, backend="dally"), "backend='dally' is not allowed"),
        (lambda few, model: vggrepro.training_batches(few, input="caffe"), "input='caffe' is not known; choose from"),
        (lambda few, model: vggrepro.stored_posteriors("nowhere"), "nowhere is not a run directory"),
        (lambda few, model: vggrepro.tables("nowhere"), "nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(few: vggrepro.Index, run: Path, call: Any, message: str) -> None:
    with pytest.raises(vggrepro.UserError, match=message) as error:
        call(few, vggrepro.load(run))
    assert "\n" not in str(error.value)


def test_posteriors_of_other_classes_are_refused(few: vggrepro.Index, tmp_path: Path) -> None:
    torch.save(vggrepro.vgg("A", classes=7, crop=32, width=1 / 16).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(vggrepro.UserError, match=r"has \d classes, which differ from those of"):
        vggrepro.posteriors(vggrepro.load(tmp_path / "seven.pth"), few, 40)


def test_missing_posteriors_are_reported(run: Path) -> None:
    with pytest.raises(vggrepro.UserError, match=r"demo:D lacks multicrop at Q = 999; run `vggrepro evaluate"):
        vggrepro.stored_posteriors(run, "multicrop", 999)


def test_images_in_memory_of_any_kind_are_the_same_image(run: Path) -> None:
    """Whole numbers of any type as uint8; 16-bit and grey as the pipeline decodes them; one alone is no batch."""
    net = vggrepro.load(run)
    image = np.random.default_rng(0).integers(0, 256, (50, 44, 3), dtype=np.uint8)
    expected = net.predict([image])
    for same in (image.astype(np.int64), image.tolist(), Image.fromarray(image)):
        assert np.abs(net.predict([same]) - expected).max() == 0
    assert np.abs(net.predict(image[None]) - expected).max() == 0
    assert 0 < np.abs(net.predict([image.astype(float)]) - expected).max() < 0.02
    grey = image[:, :, 0]
    assert np.abs(net.predict([Image.fromarray(grey.astype(np.uint16) * 257)]) - net.predict([grey])).max() == 0
    assert np.abs(net.predict([image], net.Q[0]) - net.predict([image], [net.Q[0]])).max() == 0
    assert net.predict([]).shape == (0, expected.shape[1])
    for alone in (image, Image.fromarray(image)):
        with pytest.raises(vggrepro.UserError, match="put one into a list"):
            net.predict(alone)
    scores = net.class_map(image, 40)
    assert scores.shape[0] == expected.shape[1]
    at_40 = net.predict([image], 40, flip=False)[0]
    mean = torch.from_numpy(scores).mean(dim=(1, 2)).softmax(dim=0).numpy()
    assert np.abs(mean - at_40).max() < 1e-6
