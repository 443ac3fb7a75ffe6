from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY

from vggrepro.config.parsing import differences
from vggrepro.config.recipes import load_graph, load_resolved, load_stage
from vggrepro.config.settings import Config, Model
from vggrepro.errors import UserError
from vggrepro.models.dense import score_map
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.paper import facts, value


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "stage.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_graph(file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_papers() -> None:
    config = Config(model={"net": "D"})
    assert (config.model.crop, config.model.classes, config.model.dropout) == (224, 1000, 0.5)
    assert (config.train.batch, config.train.momentum, config.train.weight_decay) == (256, 0.9, 5e-4)
    assert (config.train.learning_rate, config.train.iterations) == (1e-2, 370_000)
    assert (config.train.schedule.factor, config.train.schedule.max_drops) == (0.1, 3)
    assert (config.data.S, config.data.mean) == (256, (123.68, 116.779, 103.939))
    assert config.data.colour_shift.sigma == value("colour_shift_sigma")


@pytest.mark.parametrize(
    ("S", "single", "multi"),
    [(256, (256,), (224, 256, 288)), (384, (384,), (352, 384, 416)), ((256, 512), (384,), (256, 384, 512))],
)
def test_test_scales_follow_from_the_training_scale(S: object, single: tuple, multi: tuple) -> None:
    config = Config(model={"net": "D"}, data={"S": S})
    assert (config.single_Q, config.multi_Q) == (single, multi)


def test_test_scales_of_reduced_geometry_keep_their_proportions() -> None:
    config = Config(model={"net": "D", "crop": 64}, data={"S": 73})
    assert (config.single_Q, config.multi_Q) == ((73,), (64, 73, 82))


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config(model={"net": "D"}).train.batch = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("model: {net: A}\ntrain: {bach: 8}", [], "unknown key train.bach; did you mean batch?"),
        ("model: {net: A}\ntrian: {batch: 8}", [], "unknown key trian; did you mean train?"),
        ("model: {net: A}", ["train.schedule.patiense=3"], "train.schedule.patiense; did you mean patience?"),
        ("model: {net: A}\nrun: {zzz: 8}", [], "unknown key run.zzz; known: name, experiment, root"),
        ("model: {net: A}", ["train.batch=0"], "train.batch=0 is not allowed: input should be greater than 0"),
        ("model: {net: A}", ["train.batch=many"], "train.batch='many' is not allowed: input should be a valid integer"),
        ("model: {net: A}", ["train.batch=yes"], "train.batch=True is not allowed: true and false (in YAML"),
        ("model: {net: A}", ["data.mean=[on,1,2]"], "data.mean=[True, 1, 2] is not allowed: true and false (in YAML"),
        ("model: {net: A}\ntrain: {momentum: no}", [], "stage.yaml: train.momentum=False is not allowed: true and"),
        ("model: {net: A}", ["train.batch=1.5e1.5"], "train.batch='1.5e1.5' is not allowed: input should be a valid"),
        ("model: {net: A}", ["train.batch=15e-1"], "train.batch=1.5 is not allowed: input should be a valid integer"),
        ("model: {net: A}", ["data.backend=dally"], "data.backend='dally' is not allowed: input should be 'auto'"),
        ("model: {net: A}", ["data.S=[512,256]"], "data.S=[512, 256] is not allowed: the range must rise"),
        ("model: {net: A}", ["data.S=100"], "data.S=100 is smaller than model.crop=224"),
        ("model: {net: A}", ["evaluation.multi_Q=[200,256]"], "evaluation.multi_Q=200 is smaller than model.crop=224"),
        ("model: {net: A}", ["train.schedule.kind=fixed"], "kind: fixed needs drops_at"),
        ("model: {net: A}", ["batch"], "--set batch: expected section.key=value"),
        ("train: {batch: 8}", [], "model is missing; set it in the file or with --set model=..."),
        ("modelx: {net: A}", [], "unknown key modelx; did you mean model?"),
        ("model: {net: A}\nmodel: {net: B}", [], "key 'model' occurs twice (line 1); remove one"),
        ("model: {net: A", [], "is not YAML"),
        ("- 1", [], "expected sections (model, data,"),
        ("model: {net: A}", ["data.S=[256"], "--set data.S=[256 is not YAML: expected ',' or ']'"),
        ("model: {net: A}", ["data.root=%HOME%"], "--set data.root=%HOME% is not YAML"),
        ("model: {net: A}", ["x=\0"], r"--set x=\x00 is not YAML: remove the character U+0000"),
        ("model: {net: A}", ["model.width=1e308"], "model.width='1e308' is not allowed: input should be less than"),
        ("model: {net: A}", ["train.learning_rate=.inf"], "train.learning_rate=inf is not allowed: input should be"),
        ("model: {net: A}\nextends: 3", [], "extends=3 is not allowed: expected a path or a list of paths"),
        ("model: {net: A}\nextends: stage.yaml", [], "extends leads back to this file"),
        ("stages: {A: [1]}", [], "stages.A=[1] is not allowed: expected sections"),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_remedy(write, text: str, overrides: list[str], expected: str) -> None:
    assert expected in refusal(write(text), *overrides)


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["train.momentum=0.5", "train.batch=0"], "--set train.batch=0: train.batch=0 is not allowed"),
        (["train.batch=8", "train.batch=0"], "--set train.batch=0: "),
        (["train={batch: 0}"], "--set train={batch: 0}: train.batch=0 is not allowed"),
        (["trian.batch=8"], "--set trian.batch=8: unknown key trian; did you mean train?"),
        (["train.schedule.kind=fixed"], "--set train.schedule.kind=fixed: "),
        (["evaluation.batch=0", "data.S=9999999999"], "--set data.S=9999999999: data.S=9999999999 is not allowed"),
        (["data.colour_shift.sigma=1", "train.momentum=1"], "--set train.momentum=1: "),
    ],
)
def test_a_wrong_override_is_named_instead_of_the_recipe(write, overrides: list[str], start: str) -> None:
    assert refusal(write("model: {net: A}"), *overrides).startswith(start)
    assert "stage.yaml: train.weight_decay=-1" in refusal(
        write("model: {net: A}\ntrain: {weight_decay: -1}"), "data.S=9"
    )


def test_integers_may_have_an_exponent(write) -> None:
    stage, _ = load_stage(
        write("model: {net: A}\ntrain: {iterations: 37e4}"), ["train.batch=1E2", "data.S=[3e2, 4e+2]"]
    )
    assert (stage.train.iterations, stage.train.batch, stage.data.S) == (370_000, 100, (300, 400))


def test_the_error_for_a_missing_file_suggests_a_similar_name(write) -> None:
    file = write("model: {net: A}", "vgg_A.yaml")
    assert "did you mean vgg_A.yaml?" in refusal(file.with_name("vgg_a.yml"))


def test_a_reason_never_hides_a_wrong_value(write) -> None:
    text = refusal(write("model: {net: A, crop: -32}\nrun: {why: {model: laptop}}"))
    assert "model.crop=-32" in text


def test_reasons_of_a_recipe_do_not_cover_overrides(write) -> None:
    file = write(
        "model: {net: A, width: 0.5}\ndata: {root: builtin:digits, S: 300}\nevaluation: {flip: false}\n"
        "run: {why: {model: a laptop, data: digits, data.flip: digits have sides, evaluation.flip: the same}}"
    )

    def why(*changes: str) -> dict[str, str]:
        (stage,) = load_graph(file, changes).stages.values()
        return stage.run.why

    written = {"model": "a laptop", "data": "digits", "data.flip": "digits have sides", "evaluation.flip": "the same"}
    assert why() == written
    assert why("train.batch=8") == written, "the recipe gives no reason for it"
    assert why("model.width=0.25") == written | {"model.width": "set on the command line"}
    other_images = "the recipe's, made for other images"
    assert why("data.root=elsewhere") == {
        "model": "a laptop",
        "data": other_images,
        "data.flip": other_images,
        "evaluation.flip": other_images,
        "data.root": "set on the command line",
    }
    assert why("data.root=elsewhere", "run.why.data=mine")["data"] == "mine"


def test_extends_merges_and_the_file_takes_precedence(write) -> None:
    write("train: {batch: 8, momentum: 0.5}\ndata: {flip: false}", "base.yaml")
    stage, parent = load_stage(write("extends: base.yaml\nmodel: {net: A}\ntrain: {batch: 16}"))
    assert (stage.train.batch, stage.train.momentum, stage.data.flip, parent) == (16, 0.5, False, None)


def test_overrides_take_precedence_over_files(write) -> None:
    stage, _ = load_stage(write("model: {net: A}\ntrain: {batch: 16}"), ["train.batch=32", "data.S=[256, 512]"])
    assert (stage.train.batch, stage.data.S) == (32, (256, 512))


def test_a_stage_file_loads_its_ancestors() -> None:
    graph = load_graph(REPOSITORY / "configs" / "vgg_D_jitter.yaml")
    assert list(graph.stages) == ["A-256", "D-256", "D-384", "D-jitter"]
    assert graph.parents == {"A-256": None, "D-256": "A-256", "D-384": "D-256", "D-jitter": "D-384"}


def test_the_full_graph_trains_a_once_and_before_the_others() -> None:
    graph = load_graph(REPOSITORY / "configs" / "reproduce.yaml")
    assert len(graph.stages) == len(facts().table(3)) == 12
    names = list(graph.stages)
    assert all(parent is None or names.index(parent) < names.index(name) for name, parent in graph.parents.items())


def test_stages_in_place_share_the_files_sections(write) -> None:
    file = write("train: {batch: 8}\nstages:\n  A: {model: {net: A}}\n  D: {model: {net: D}, run: {parent: A}}")
    graph = load_graph(file, ["run.seed=3"])
    assert [(c.model.net, c.train.batch, c.run.seed) for c in graph.stages.values()] == [("A", 8, 3), ("D", 8, 3)]
    assert graph.parents == {"A": None, "D": "A"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "stages: {D: {model: {net: D}, run: {parent: A}}}",
            "run.parent=A of stage D is not an earlier stage of the file",
        ),
        ("stages: []", "stages is empty"),
        ("stages: 3", "stages must be a list of stage files or a mapping"),
        ("model: {net: D}\nrun: {parent: stage.yaml}", "run.parent leads back to this file"),
        ("model: {net: D}\nrun: {parent: nowhere.yaml}", "nowhere.yaml does not exist"),
    ],
)
def test_an_invalid_graph_is_an_error(write, text: str, expected: str) -> None:
    assert expected in refusal(write(text))


def test_two_different_stages_of_the_same_name_are_an_error(write) -> None:
    write("model: {net: A}\nrun: {name: same}", "a.yaml")
    write("model: {net: B}\nrun: {name: same}", "b.yaml")
    assert "two different stages are named same" in refusal(write("stages: [a.yaml, b.yaml]", "graph.yaml"))


def test_a_graph_is_not_a_stage(write) -> None:
    with pytest.raises(UserError, match="has a graph of stages"):
        load_stage(write("stages: {A: {model: {net: A}}}"))


def test_seeds_repeat_the_graph() -> None:
    file = REPOSITORY / "configs" / "vgg_D.yaml"
    graph = load_graph(file, seeds="0,3")
    assert graph.parents == {"A-256": None, "D-256": "A-256", "A-256-seed3": None, "D-256-seed3": "A-256-seed3"}
    assert list(graph.stages) == list(graph.parents)
    assert [stage.run.seed for stage in graph.stages.values()] == [0, 0, 3, 3]
    assert [stage.name for stage in graph.stages.values()] == list(graph.stages)
    assert {stage.run.experiment for stage in graph.stages.values()} == {graph.name}
    plain = load_graph(file)
    assert {name: graph.stages[name].trajectory() for name in plain.stages} == {
        name: stage.trajectory() for name, stage in plain.stages.items()
    }, "a run without --seeds is the run of its seed"
    assert list(load_graph(file, ["run.seed=3"], seeds="0,3").stages)[:2] == ["A-256-seed0", "D-256-seed0"]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ("", "--seeds : expected whole numbers separated by commas"),
        ("1,,2", "--seeds 1,,2: expected whole numbers"),
        ("-1", "--seeds -1: expected whole numbers"),
        ("1;2", "--seeds 1;2: expected whole numbers"),
        ("0,1,0", "--seeds 0,1,0: a seed is listed twice"),
        (f"{2**63}", f"{2**63} is too large"),
    ],
)
def test_invalid_seeds_are_an_error(seeds: str, expected: str) -> None:
    with pytest.raises(UserError) as mistake:
        load_graph(REPOSITORY / "configs" / "vgg_A.yaml", seeds=seeds)
    assert expected in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_seeds_name_may_be_taken(write) -> None:
    file = write("stages: {A: {model: {net: A}}, A-seed1: {model: {net: A}, run: {seed: 1}}}")
    with pytest.raises(UserError, match=r"the name A-seed1 is taken; give that stage another run\.name"):
        load_graph(file, seeds="0,1")


@pytest.mark.parametrize(
    ("model", "Q", "positions"),
    [
        ({"net": "D"}, 224, 1),
        ({"net": "D"}, 256, 4),
        ({"net": "D"}, 384, 36),
        ({"net": "A", "crop": 64}, 73, 1),
        ({"net": "A", "crop": 128}, 160, 4),
        ({"net": "A", "crop": 128}, 192, 9),
        ({"net": "custom", "crop": 64, "layers": [["conv3-8"], ["conv3-8"]]}, 67, 1),
        ({"net": "custom", "crop": 64, "layers": [["conv3-8"], ["conv3-8"]]}, 68, 4),
    ],
)
def test_positions_of_the_dense_score_map(model: dict, Q: int, positions: int) -> None:
    config = Config(model=model, data={"S": 512})
    assert architecture_of(config).places(Q, Q) == positions
    if model["net"] != "custom":
        net = VGG(architecture_of(config.model_copy(update={"model": config.model.model_copy(update={"width": 0.02})})))
        assert score_map(net.eval(), torch.zeros(1, 3, Q, Q))[0, 0].numel() == positions


@pytest.mark.parametrize(
    ("crop", "S", "papers"),
    [
        (224, 256, 256),
        (224, 320, 320),
        (128, 160, 256),
        (128, 224, 384),
        (128, (160, 288), (256, 512)),
        (224, (300, 400), (300, 400)),
    ],
)
def test_the_papers_scale_that_a_stage_corresponds_to(crop: int, S: object, papers: object) -> None:
    low = S[0] if isinstance(S, tuple) else S
    config = Config(model={"net": "D", "crop": crop}, data={"S": S}, evaluation={"multi_Q": [max(low, crop)]})
    assert config.papers_S == papers


def test_the_resolved_configuration_survives_a_round_trip(write) -> None:
    stage, _ = load_stage(REPOSITORY / "configs" / "vgg_D_jitter.yaml", ["run.why={data: a reason}"])
    assert load_resolved(write(stage.to_yaml(), "config.yaml")) == stage


def test_the_trajectory_has_only_settings_that_affect_training() -> None:
    base = Config(model={"net": "D"})
    same = Config(model={"net": "D"}, data={"root": "x", "workers": 3}, train={"keep": 9, "micro_batch": 4})
    assert base.trajectory() == same.trajectory()
    for change in ({"run": {"seed": 1}}, {"train": {"batch": 128}}, {"data": {"flip": False}}):
        assert Config.model_validate({"model": {"net": "D"}} | change).trajectory() != base.trajectory()


def test_differences_name_the_settings() -> None:
    left, right = Config(model={"net": "D"}), Config(model={"net": "D"}, train={"batch": 128})
    assert differences(left.trajectory(), right.trajectory()) == [("train.batch", 256, 128)]


def test_a_recipe_is_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_graph(Path("vgg_D")) == load_graph(REPOSITORY / "configs" / "vgg_D.yaml")
    assert load_graph(Path("vgg_D.yaml")) == load_graph(Path("vgg_D"))
    assert load_graph(Path("reduced/imagenette_gpu")).name == "imagenette-gpu"  # extends a file beside it
    assert [config.name for config in load_stage(Path("vgg_D")) if config] == ["D-256", "A-256"]
    with pytest.raises(UserError, match="has a graph of stages"):
        load_stage(Path("demo"))


def test_a_file_takes_precedence_over_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert list(load_graph(Path("demo")).stages) == ["A", "D"]
    (tmp_path / "vgg_D.yaml").write_text("model: {net: E}\nrun: {name: mine}")
    assert list(load_graph(Path("vgg_D.yaml")).stages) == ["mine"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vgg_F", "vgg_E"),
        ("configs/vgg_D.yaml", "vgg_D"),
        ("reduced/imagenete", "reduced/imagenette"),
        ("imagenette", "reduced/imagenette"),
    ],
)
def test_the_error_for_an_unknown_recipe_suggests_similar_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = refusal(Path(name))
    assert text.startswith(f"configuration {name} does not exist; did you mean ")
    assert near in text.rstrip("?").split("did you mean ")[1].split(", ")


@pytest.mark.parametrize("name", ["", "/", "..", "a" * 5000])
def test_impossible_file_names_are_an_error(name: str) -> None:
    refusal(Path(name))


def test_only_listed_stages_are_tested_on_transfer_data_sets(tmp_path: Path) -> None:
    """Ancestors are not tested unless the file lists them, too."""
    (tmp_path / "A.yaml").write_text("model: {net: A}")
    (tmp_path / "D.yaml").write_text("model: {net: D}\nrun: {parent: A.yaml}")
    (tmp_path / "both.yaml").write_text("stages: [D.yaml, A.yaml]")
    (tmp_path / "base.yaml").write_text("transfer: {sets: {pets: somewhere}}\nstages: [D.yaml]")
    (tmp_path / "place.yaml").write_text("stages: {A: {model: {net: A}}, D: {model: {net: D}, run: {parent: A}}}")

    def tested(name: str, *changes: str) -> set[str]:
        stages = load_graph(tmp_path / name, changes, seeds="0,1").stages
        return {stage.name for stage in stages.values() if stage.transfer.sets}

    override = "transfer.sets.pets=somewhere"
    assert tested("D.yaml", override) == {"D-256", "D-256-seed1"}
    assert tested("base.yaml") == {"D-256", "D-256-seed1"}
    assert tested("both.yaml", override) == {"A-256", "D-256", "A-256-seed1", "D-256-seed1"}
    assert tested("place.yaml", override) == {"A", "D", "A-seed1", "D-seed1"}
    assert tested("D.yaml") == set()


def test_all_blocks_is_the_default() -> None:
    """Equal nets have equal settings, and so the same run and geometry."""
    default = Model(net="D")
    assert Model(net="D", blocks=5) == default
    layers = [["conv3-64"], ["conv3-128"], ["conv3-256"]]
    assert Model(net="x", layers=layers, blocks=3) == Model(net="x", layers=layers)
    small = {"crop": 56, "width": 0.25}
    assert Model(net="x", layers=layers, **small).geometry == Model(net="A", blocks=3, **small).geometry
    assert Model(net="A", blocks=3, **small).geometry == "crop 56 px, 3 blocks, width x 0.25"
    assert Model(net="x", layers=[*layers] * 2, blocks=5).geometry == default.geometry == "crop 224 px"


def test_a_registered_net_must_be_logged() -> None:
    recipe = REPOSITORY / "configs/vgg_A.yaml"
    with pytest.raises(UserError, match="register=vgg needs a logged model; remove it or model=never"):
        load_stage(recipe, ["tracking.register=vgg", "tracking.model=never"])
    with pytest.raises(UserError, match=r"tracking\.register"):
        load_stage(recipe, ["tracking.register=a/b"])
