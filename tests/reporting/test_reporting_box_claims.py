"""The claims of Appendix A on fabricated boxes, with known correct images on each side."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from reporting_runs import BOTH, COARSE, FINE, IMAGES, box_run, find_centre, find_dense, report_of
from scipy.stats import binomtest, norm, t, ttest_1samp

from vggrepro.evaluation.box_store import truth_file
from vggrepro.reporting.claims.box_claims import check_box_claims
from vggrepro.reporting.claims.claim import Claim
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.stored.found_boxes import BoxCache


def claim_of(root: Path, words: str) -> Claim:
    (found,) = [claim for claim in report_of(root).claims if claim.section == "A" and words in claim.claim]
    return found


def assert_is_paired_test(claim: Claim, worse: Sequence[range], better: Sequence[range]) -> None:
    """Computes the test by hand from the wrong images of each side."""
    wrong, wrong_too = ({image % IMAGES for part in side for image in part} for side in (worse, better))
    only_worse, only_better = len(wrong - wrong_too), len(wrong_too - wrong)
    share = (only_worse - only_better) / IMAGES
    deviation = math.sqrt(((only_worse + only_better) / IMAGES - share**2) / IMAGES)
    half = float(norm.ppf(0.975)) * deviation
    assert claim.effect == pytest.approx(100 * share)
    assert claim.interval == pytest.approx((100 * (share - half), 100 * (share + half)))
    assert claim.p_value == pytest.approx(binomtest(only_worse, only_worse + only_better, 0.5).pvalue)
    decided = claim.p_value < 0.05
    assert claim.verdict == ("undecided at this n" if not decided else "supported" if share > 0 else "not supported")
    assert (claim.n, claim.seeds, claim.spread) == (IMAGES, 1, None)


def test_without_runs_no_claim_is_decided() -> None:
    claims = check_box_claims("g", [], BoxCache([]))
    assert len(claims) == len({claim.claim for claim in claims}) == 8
    assert {(claim.section, claim.verdict, claim.n) for claim in claims} == {("A", "not measured", None)}
    notes = {claim.claim.partition(":")[0]: claim.note for claim in claims}
    assert notes["A box for each class is better than one for all"] == "no run of PCR, fc, S = 384; SCR, fc, S = 384"
    assert notes["The larger scale is better"] == "no run of PCR, all, S = 256; PCR, all, S = 384"
    sides = {(claim.better, claim.worse) for claim in claims}
    assert ("PCR (all) at S = 384, one Q: dense", "PCR (all) at S = 384, one Q: centre") in sides
    pooled = "PCR (all) at S = 256, one Q + PCR (all) at S = 384, several Q: dense"
    assert (pooled, "PCR (all) at S = 256, one Q: dense") in sides


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(600, "supported"), (860, "not supported"), (728, "undecided at this n")]
)
def test_a_box_for_each_class(root: Path, wrong: int, verdict: str) -> None:
    line = {"setting": "train.precision", "paper": "fp32", "run": "bf16", "why": "faster"}
    find_centre(box_run(root, regression="SCR", fine_tune="fc"), 728)
    find_centre(box_run(root, fine_tune="fc", departures=[line]), wrong, first=100)
    claim = claim_of(root, "A box for each class")
    assert claim.verdict == verdict
    assert_is_paired_test(claim, [range(728)], [range(100, 100 + wrong)])
    assert claim.better == "paper:384-PCR-fc-0: centre, Q = 384"
    assert claim.worse == "paper:384-SCR-fc-0: centre, Q = 384"
    assert claim.departures == 1


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(600, "supported"), (700, "not supported"), (670, "undecided at this n")]
)
def test_fine_tuning_all_layers(root: Path, wrong: int, verdict: str) -> None:
    find_centre(box_run(root, fine_tune="fc"), 662)
    find_centre(box_run(root), wrong, first=3)
    claim = claim_of(root, "Fine-tuning all layers")
    assert claim.verdict == verdict
    assert_is_paired_test(claim, [range(662)], [range(3, 3 + wrong)])


@pytest.mark.parametrize("S", [256, 384])
@pytest.mark.parametrize(("wrong", "verdict"), [(600, "supported"), (720, "not supported")])
def test_the_full_image_and_its_centre_are_given_the_class(root: Path, S: int, wrong: int, verdict: str) -> None:
    """Both sides use Table 8's measure, which ignores wrong guesses."""
    run = box_run(root, S)
    find_centre(run, 662)
    find_dense([(run, (S,))], wrong, lost=500)
    claim = claim_of(root, f"its centre crop: PCR at S = {S}")
    assert claim.verdict == verdict
    assert_is_paired_test(claim, [range(662)], [range(wrong)])
    assert (claim.better, claim.worse) == (
        f"paper:{S}-PCR-all-0: dense, Q = {S}",
        f"paper:{S}-PCR-all-0: centre, Q = {S}",
    )


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(500, "supported"), (720, "not supported"), (585, "undecided at this n")]
)
def test_the_larger_scale(root: Path, wrong: int, verdict: str) -> None:
    """The measure is Table 9's: images without a right guess are wrong on both sides."""
    find_dense([(box_run(root, 256), COARSE)], 590, lost=200)
    find_dense([(box_run(root), FINE)], wrong, lost=200)
    claim = claim_of(root, "The larger scale")
    lost = range(IMAGES - 200, IMAGES)
    assert claim.verdict == verdict
    assert_is_paired_test(claim, [range(590), lost], [range(wrong), lost])


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(500, "supported"), (720, "not supported"), (586, "undecided at this n")]
)
def test_two_test_scales_and_two_nets(root: Path, wrong: int, verdict: str) -> None:
    coarse, fine = box_run(root, 256), box_run(root)
    find_dense([(coarse, COARSE)], 590, lost=200)
    find_dense([(fine, FINE)], 590, lost=200)
    find_dense([(fine, BOTH)], wrong, first=2, lost=200)
    find_dense([(fine, BOTH), (coarse, COARSE)], 590, lost=200)  # pooled in the other order than the claim's
    lost = range(IMAGES - 200, IMAGES)
    scales = claim_of(root, "Two test scales")
    assert scales.verdict == verdict
    assert_is_paired_test(scales, [range(590), lost], [range(2, 2 + wrong), lost])
    assert (scales.better, scales.worse) == (
        "paper:384-PCR-all-0: dense, Q = 352, 384",
        "paper:384-PCR-all-0: dense, Q = 384",
    )
    fine_alone, coarse_alone = (claim_of(root, f"pooled, are better than the one at S = {S}") for S in (384, 256))
    assert_is_paired_test(fine_alone, [range(2, 2 + wrong), lost], [range(590), lost])
    opposite = {"supported": "not supported", "not supported": "supported"}
    assert fine_alone.verdict == opposite.get(verdict, verdict)
    assert (coarse_alone.effect, coarse_alone.p_value, coarse_alone.verdict) == (0.0, 1.0, "undecided at this n")
    assert fine_alone.better == "paper:256-PCR-all-0 + paper:384-PCR-all-0: dense, Q = 256 + 352, 384"


def test_several_seeds_decide_by_their_spread(root: Path) -> None:
    errors = {0: (620, 560), 1: (600, 570), 2: (610, 559)}
    for seed, (coarse, fine) in errors.items():
        find_dense([(box_run(root, 256, seed=seed), COARSE)], coarse)
        find_dense([(box_run(root, seed=seed), FINE)], fine)
    find_dense([(box_run(root, seed=9), FINE)], 0)  # no net at S = 256 has this seed
    claim = claim_of(root, "The larger scale")
    effects = [100 * (coarse - fine) / IMAGES for coarse, fine in errors.values()]
    test = ttest_1samp(effects, 0)
    assert (claim.seeds, claim.verdict) == (3, "supported")
    assert claim.effect == pytest.approx(statistics.mean(effects))
    assert claim.spread == pytest.approx(statistics.stdev(effects))
    assert claim.p_value == pytest.approx(test.pvalue)
    half = t.ppf(0.975, 2) * statistics.stdev(effects) / math.sqrt(3)
    assert claim.interval == pytest.approx((claim.effect - half, claim.effect + half))
    assert claim.better == "paper:384-PCR-all-0, paper:384-PCR-all-1, paper:384-PCR-all-2: dense, Q = 384"


def test_both_sides_have_the_same_guesses(root: Path) -> None:
    """Better guesses on one side are ignored, and the best shared ones are used."""
    coarse, fine = box_run(root, 256), box_run(root)
    for guesses, lost, wrong in (("poor", 600, 0), ("good", 200, 590), ("also good", 200, 590)):
        find_dense([(coarse, COARSE)], wrong, lost=lost, guesses=guesses)
        find_dense([(fine, FINE)], 500, lost=lost, guesses=guesses)
    find_dense([(fine, FINE)], 0, lost=0, guesses="perfect")
    assert claim_of(root, "The larger scale").effect == pytest.approx(4.5)
    reported = {row.Q: row.main.measured for row in report_of(root).rows if row.run and row.table == 9}
    assert (reported["384"], reported["256"]) == (0.0, 39.5)


def test_without_shared_guesses_or_true_boxes_there_is_no_test(root: Path) -> None:
    coarse, fine = box_run(root, 256), box_run(root)
    other = box_run(root, fine_tune="fc", boxes="c" * 64)
    find_dense([(coarse, COARSE)], 590, guesses="one")
    find_dense([(fine, FINE)], 590, guesses="another")
    find_centre(fine, 500)
    find_centre(other, 600)
    for words in ("The larger scale", "Fine-tuning all layers"):
        claim = claim_of(root, words)
        note = "no seed has boxes of both sides for the same images and guesses"
        assert (claim.verdict, claim.note, claim.effect) == ("not measured", note, None)
    assert truth_file(fine.run_directory, "f" * 64, "b" * 64).exists()


def test_a_net_without_boxes_is_named_by_what_lacks(root: Path) -> None:
    box_run(root)
    assert claim_of(root, "The larger scale").note == "no run of PCR, all, S = 256"
    box_run(root, 256, seed=3)
    note = "no seed has boxes of both sides for the same images and guesses"
    assert claim_of(root, "The larger scale").note == note


def test_another_geometry_shows_what_is_measured_only(root: Path) -> None:
    coarse, fine = box_run(root, 37, crop=32), box_run(root, 55, crop=32)
    find_dense([(coarse, (37,))], 600)
    find_dense([(fine, (55,))], 500)
    text = render(report_of(root), Format.markdown, "t")
    claims = text.partition("### The paper's claims")[2].partition("### Runs")[0]
    assert "| A | The larger scale is better: S = 384 and S = 256, dense | supported | +5.00 |" in claims
    assert "Two nets, their boxes pooled" not in claims
    assert "Section A: localisation errors in place of top-1 errors." in claims
