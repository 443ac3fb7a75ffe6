"""The facts agree with each other, and reading them is light."""

import pytest
from programs import modules_imported_by

from vggrepro.models.table1 import architecture
from vggrepro.paper import facts, value

NETS = ["A", "A-LRN", "B", "C", "D", "E"]


def test_table_1_has_the_papers_weight_layers() -> None:
    assert list(facts().architectures) == NETS
    assert [architecture(net).weight_layers for net in NETS] == [11, 11, 13, 16, 16, 19]
    assert all(len(blocks) == 5 for blocks in facts().architectures.values())


@pytest.mark.parametrize("net", NETS)
def test_table_2_follows_from_table_1(net: str) -> None:
    assert facts().parameters[net] == architecture(net).parameters
    assert facts().parameters_batch_norm[net] == architecture(net, batch_norm=True).parameters
    assert facts().parameters_printed_millions[net] == round(facts().parameters[net] / 1e6)


def test_tables_3_to_7_are_complete() -> None:
    assert {number: len(rows) for number, rows in facts().tables.items()} == {3: 12, 4: 10, 5: 6, 6: 4}
    assert len(facts().state_of_the_art) == 15
    for number, rows in facts().tables.items():
        for row in rows:
            assert row.table == number
            assert row.method in ("dense", "multicrop", "both")
            assert row.top5 < row.top1
            assert set(row.nets) <= set(NETS)
            assert (len(row.members) == 1) == (number < 6)


def test_test_scales_follow_the_papers_rules() -> None:
    """Q follows from S (Sections 4.1 and 4.2)."""
    s_min, s_max = value("jitter")
    offset = value("test_scale_offset")
    assert value("test_scale_jitter") == (s_min + s_max) // 2
    assert value("test_scales_jitter") == (s_min, (s_min + s_max) // 2, s_max)
    for row in facts().table(3):
        expected = (value("test_scale_jitter"),) if isinstance(row.S, tuple) else (row.S,)
        assert expected == row.Q
    for row in facts().table(4):
        fixed = not isinstance(row.S, tuple)
        expected = (row.S - offset, row.S, row.S + offset) if fixed else value("test_scales_jitter")
        assert expected == row.Q
    seven_nets, *pairs = facts().table(6)
    assert (len(seven_nets.nets), seven_nets.S, seven_nets.Q) == (7, None, None)
    assert all((pair.nets, pair.S, pair.Q) == (("D", "E"), (256, 512), (256, 384, 512)) for pair in pairs)


def test_tables_repeat_each_others_figures() -> None:
    multi_scale = {(row.nets, row.S): (row.top1, row.top5) for row in facts().table(4)}
    for row in facts().table(5):
        if row.method == "dense":
            assert multi_scale[row.nets, row.S] == (row.top1, row.top5)
    pair, single, submission = facts().state_of_the_art[:3]
    table_6 = facts().table(6)
    assert (pair.top1, pair.top5, pair.top5_test) == (table_6[3].top1, table_6[3].top5, table_6[3].top5_test)
    assert (single.top1, single.top5) == (facts().table(5)[-1].top1, facts().table(5)[-1].top5)
    fused = table_6[0]
    assert (submission.top1, submission.top5, submission.top5_test) == (fused.top1, fused.top5, fused.top5_test)


def test_tables_8_to_10_are_complete() -> None:
    assert {number: len(rows) for number, rows in facts().localisation.items()} == {8: 3, 9: 4}
    assert len(facts().localisation_state_of_the_art) == 4
    for number, rows in facts().localisation.items():
        assert [row.table for row in rows] == [number] * len(rows)
        errors = [row.error for row in rows]
        assert errors == sorted(set(errors), reverse=True)  # the paper goes from worse to better
        for row in rows:
            assert row.error_test is None or row.error_test < row.error
            assert {member.net for member in row.members} == {value("localisation_net")}
            assert row.regression in ("SCR", "PCR")
            assert row.fine_tune in ("all", "fc")
            assert (len(row.members) > 1) == (row is facts().localisation[9][-1])
    assert all((row.regression, row.fine_tune) == ("PCR", "all") for row in facts().localisation[9])
    assert [(row.regression, row.fine_tune) for row in facts().localisation[8]] == [
        ("SCR", "fc"),
        ("PCR", "fc"),
        ("PCR", "all"),
    ]


def test_test_scales_of_boxes_follow_from_s() -> None:
    """Q = S, and for the larger S also one step below (Appendix A)."""
    fixed, fine = value("scales")
    for row in facts().localisation[8]:
        assert [(member.S, member.Q) for member in row.members] == [(fine, (fine,))]
    *alone, pooled = facts().localisation[9]
    several = (fine - value("test_scale_offset"), fine)
    tested = [(member.S, member.Q) for row in alone for member in row.members]
    assert tested == [(fixed, (fixed,)), (fine, (fine,)), (fine, several)]
    # what is pooled is each net as it is best by itself
    assert [(member.S, member.Q) for member in pooled.members] == [(fixed, (fixed,)), (fine, several)]


def test_table_10_repeats_the_last_row_of_table_9() -> None:
    ours, *others = facts().localisation_state_of_the_art
    last = facts().localisation[9][-1]
    assert (ours.method, ours.error, ours.error_test) == ("VGG", last.error, last.error_test)
    assert [other.method for other in others] == ["GoogLeNet", "OverFeat", "AlexNet"]
    assert all(other.error_test is not None and other.error_test > last.error_test for other in others)


def test_hyperparameters() -> None:
    assert (value("batch_size"), value("momentum"), value("weight_decay"), value("dropout")) == (256, 0.9, 5e-4, 0.5)
    assert (value("learning_rate"), value("learning_rate_384"), value("iterations")) == (1e-2, 1e-3, 370_000)
    assert value("epochs") == round(value("iterations") * value("batch_size") / value("train_images"))
    assert value("multicrop_per_scale") == 2 * value("multicrop_grid") ** 2
    assert all(fact.section for fact in facts().hyperparameters.values())
    assert not any(isinstance(fact.value, list) for fact in facts().hyperparameters.values())
    with pytest.raises(KeyError):
        value("patience")


def test_colour_shift_components_are_orthonormal() -> None:
    vectors = value("colour_shift_eigenvectors")
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors):
            assert sum(x * y for x, y in zip(a, b, strict=True)) == pytest.approx(float(i == j), abs=2e-3)


def test_defaults_of_architecture_are_the_papers() -> None:
    net = architecture("D")
    assert (net.classes, net.crop, net.dropout) == (value("classes"), value("crop"), value("dropout"))
    assert (net.fc_units, net.fc6_kernel, net.width) == (value("fc_units"), 7, 1.0)


@pytest.mark.parametrize("module", ["vggrepro.paper", "vggrepro.models.table1", "vggrepro.models.summary"])
def test_import_needs_no_torch(module: str) -> None:
    loaded = modules_imported_by(f"import {module}, vggrepro.paper; vggrepro.paper.facts()")
    assert not {"torch", "numpy", "pydantic"} & loaded
