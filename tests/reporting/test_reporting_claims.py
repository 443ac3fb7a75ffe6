"""The paper's claims on fabricated posteriors, and paired tests on real predictions of ten public nets."""

import itertools
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from reporting_runs import IMAGES, dense, labels, make_run, posteriors_with
from scipy.stats import binomtest, t, ttest_1samp, ttest_ind
from tiny import CONFIGS, PublicPredictions

from vggrepro.config.recipes import load_stage
from vggrepro.evaluation.errors import Ranks
from vggrepro.models.table1 import architecture
from vggrepro.reporting.claims.claim import Claim
from vggrepro.reporting.claims.class_claims import SHALLOW, check_claims
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.stored.predictions import PredictionCache, paired_top1
from vggrepro.reporting.tables.build import build_report


def claims_of(root: Path) -> dict[str, Claim]:
    return {claim.claim: claim for claim in build_report(find_runs([root])).claims}


def claim_of(root: Path, words: str) -> Claim:
    (found,) = [claim for text, claim in claims_of(root).items() if words in text]
    return found


def test_without_runs_no_claim_is_decided() -> None:
    claims = check_claims("g", {}, PredictionCache(), {})
    assert len(claims) > 25
    assert {claim.verdict for claim in claims} == {"not measured"}
    assert {claim.section for claim in claims} == {"4.1", "4.2", "4.3", "4.4"}


@pytest.mark.parametrize(
    ("wrong_B", "verdict"), [(500, "supported"), (700, "not supported"), (588, "undecided at this n")]
)
def test_better_has_the_exact_test(root: Path, wrong_B: int, verdict: str) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=0))
    make_run(root, "B", posteriors=dense(256, wrong1=wrong_B, wrong5=0))
    claim = claim_of(root, "B is better than A")
    differing = abs(592 - wrong_B)  # the wrong ones of the one are among those of the other
    assert claim.verdict == verdict
    assert claim.effect == pytest.approx(100 * (592 - wrong_B) / IMAGES)
    assert claim.p_value == pytest.approx(binomtest(0, differing).pvalue)
    half = 100 * 1.959964 * math.sqrt(differing - differing**2 / IMAGES) / IMAGES
    assert claim.interval == pytest.approx((claim.effect - half, claim.effect + half), abs=1e-4)
    assert (claim.n, claim.seeds, claim.spread) == (IMAGES, 1, None)
    assert (claim.better, claim.worse) == ("paper:B-256: dense, Q = 256", "paper:A-256: dense, Q = 256")
    assert claim.departures == 0


@pytest.mark.parametrize(
    ("wrong_LRN", "verdict"), [(594, "supported"), (592 - 60, "not supported"), (592 - 10, "undecided at this n")]
)
def test_does_not_help_means_a_gain_below_the_margin(root: Path, wrong_LRN: int, verdict: str) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=0))
    make_run(root, "A-LRN", posteriors=dense(256, wrong1=wrong_LRN, wrong5=0))
    assert claim_of(root, "does not help").verdict == verdict


@pytest.mark.parametrize(
    ("wrong_E", "verdict"),
    [(541, "supported"), (600, "not supported"), (450, "not supported"), (549, "undecided at this n")],
)
def test_about_as_good_means_within_the_margin(root: Path, wrong_E: int, verdict: str) -> None:
    make_run(root, "D", posteriors=dense(256, wrong1=540, wrong5=0))
    make_run(root, "E", posteriors=dense(256, wrong1=wrong_E, wrong5=0))
    assert claim_of(root, "E is within").verdict == verdict


def test_protocols_of_a_net_are_compared(root: Path) -> None:
    scales = (256, 384, 512)
    posteriors = {("dense", Q): posteriors_with(300, 0, first) for Q, first in zip(scales, (0, 300, 600), strict=True)}
    posteriors |= {("multicrop", Q): posteriors_with(20, 0) for Q in scales}
    make_run(root, "D", (256, 512), posteriors=posteriors)
    make_run(root, "E", (256, 512), posteriors=posteriors)
    assert claim_of(root, "D at S = [256;512], several Q are better").effect == 15.0
    assert claim_of(root, "Multi-crop is better than dense: D").effect == -1.0
    assert claim_of(root, "Multi-crop is better than dense: D").verdict == "not supported"
    assert claim_of(root, "better than E, multi-crop").verdict == "undecided at this n"  # the same answers
    assert claim_of(root, "B is better than its 5x5 twin").verdict == "not measured"


def test_the_twin_of_b_is_compared_by_centre_crops(root: Path) -> None:
    twin, _ = load_stage(CONFIGS / "ablation_B-5x5.yaml")
    assert twin.model.net == SHALLOW
    make_run(root, "B", posteriors={("centre", 256): posteriors_with(600, 0)})
    make_run(root, twin.model.net, layers=twin.model.layers, posteriors={("centre", 256): posteriors_with(740, 0)})
    claim = claim_of(root, "B is better than its 5x5 twin")
    assert (claim.verdict, claim.effect) == ("supported", 7.0)


def test_the_twin_of_b_sees_as_far_as_b_with_half_its_layers() -> None:
    twin, parent = load_stage(CONFIGS / "ablation_B-5x5.yaml")
    ours = architecture(twin.model.net, layers=twin.model.layers)
    convs = [layer for layer in ours.layers() if layer.kind == "conv"]
    of_B = [layer for layer in architecture("B").layers() if layer.kind == "conv"]
    assert [(layer.kernel, layer.shape) for layer in convs] == [(5, layer.shape) for layer in of_B[::2]]
    assert parent is None  # nothing of A fits 5x5 kernels


def test_several_seeds_decide_by_their_spread(root: Path) -> None:
    errors = {0: (592, 560), 1: (600, 570), 2: (588, 559)}
    for seed, (A, B) in errors.items():
        make_run(root, "A", name=f"A-{seed}", seed=seed, posteriors=dense(256, wrong1=A, wrong5=0))
        line = {"setting": "train.precision", "paper": "fp32", "run": "bf16", "why": "faster"}
        B_posteriors = dense(256, wrong1=B, wrong5=0)
        make_run(root, "B", name=f"B-{seed}", seed=seed, posteriors=B_posteriors, departures=[line])
    make_run(root, "B", name="B-9", seed=9, posteriors=dense(256, wrong1=565, wrong5=0))  # no A has this seed
    claim = claim_of(root, "B is better than A")
    effects = [100 * (A - B) / IMAGES for A, B in errors.values()]
    A, B = ([100 * both[net] / IMAGES for both in errors.values()] for net in (0, 1))
    B.append(28.25)  # which tells of B's spread all the same
    sd = math.sqrt((2 * statistics.variance(A) + 3 * statistics.variance(B)) / 5)
    half = t.ppf(0.975, 5) * sd * math.sqrt(2 / 3)
    assert claim.spread == pytest.approx(statistics.stdev(effects))
    assert claim.p_value == pytest.approx(2 * t.sf(claim.effect / sd / math.sqrt(2 / 3), 5))
    assert claim.better == "paper:B-0, paper:B-1, paper:B-2: dense, Q = 256"
    assert claim.departures == 1
    assert (claim.over, claim.seeds, claim.verdict) == ("seeds", 3, "supported")
    assert claim.effect == pytest.approx(statistics.mean(effects))
    assert claim.interval == pytest.approx((claim.effect - half, claim.effect + half))


def test_two_nets_of_several_seeds_are_two_samples(root: Path) -> None:
    A, B = [30.0, 31.0, 29.5], [28.0, 29.0, 27.0]
    for net, errors in (("A", A), ("B", B)):
        for seed, error in enumerate(errors):
            results = dense(256, wrong1=int(error * IMAGES / 100), wrong5=0)
            make_run(root, net, name=f"{net}-{seed}", seed=seed, posteriors=results)
    claim, stated = claim_of(root, "B is better than A"), ttest_ind(A, B)
    assert claim.p_value == pytest.approx(stated.pvalue)
    assert claim.interval == pytest.approx(tuple(stated.confidence_interval()))
    assert claim.verdict == "supported"


def test_few_seeds_use_the_spread_of_all_nets(root: Path) -> None:
    """Two seeds give one degree of freedom and decide nothing; four nets of two seeds give four."""
    for net, error in (("A", 600), ("B", 560), ("C", 520), ("D", 480)):
        for seed in (0, 1):
            # A's and B's errors move against each other
            results = dense(256, wrong1=error + (8 * seed if net in "AC" else -8 * seed), wrong5=0)
            make_run(root, net, name=f"{net}-{seed}", seed=seed, posteriors=results)
    for words in ("B is better than A", "C is better than B", "D is better than C"):
        claim = claim_of(root, words)
        assert claim.interval is not None
        half = t.ppf(0.975, 4) * 100 * 8 / math.sqrt(2) / IMAGES
        assert claim.interval[1] - claim.interval[0] == pytest.approx(2 * half)
        assert (claim.seeds, claim.over) == (2, "seeds")
    assert claim_of(root, "B is better than A").verdict == "supported"


def test_nets_at_two_S_have_a_spread_each(root: Path) -> None:
    fixed, jitter = [30.0, 30.5, 30.2], [27.0, 29.0, 25.0]
    for seed in range(3):
        results = dense(256, wrong1=int(fixed[seed] * IMAGES / 100), wrong5=0)
        make_run(root, "D", name=f"D-{seed}", seed=seed, posteriors=results)
        results = dense(384, wrong1=int(jitter[seed] * IMAGES / 100), wrong5=0)
        make_run(root, "D", (256, 512), name=f"D-jitter-{seed}", seed=seed, posteriors=results)
    claim, stated = (
        claim_of(root, "D at S = [256;512] is better than at S = 256"),
        ttest_ind(fixed, jitter, equal_var=False),
    )
    assert claim.p_value == pytest.approx(stated.pvalue)
    assert claim.interval == pytest.approx(tuple(stated.confidence_interval()))


@pytest.fixture(scope="module")
def public_nets(public_predictions: PublicPredictions) -> dict[str, Ranks]:
    """Ranks of ten public nets on ILSVRC-2012's 50,000 validation images; misses of five guesses rank sixth."""
    labels, guesses = public_predictions
    places = {name: five == labels[:, None] for name, five in guesses.items()}
    return {name: Ranks(labels, np.where(at.any(axis=1), at.argmax(axis=1), 5)) for name, at in places.items()}


def test_public_nets_have_their_published_errors(public_nets: dict[str, Ranks]) -> None:
    published = {"vgg16": (28.408, 9.618), "vgg19": (27.624, 9.124), "vgg11_bn": (29.630, 10.190)}
    for name, (top1, top5) in published.items():
        predictions = public_nets[name]
        assert (round(predictions.top1.percent, 3), round(predictions.top5.percent, 3)) == (top1, top5)


def test_all_pairs_of_public_nets(public_nets: dict[str, Ranks]) -> None:
    assert len(public_nets) == 10
    for first, second in itertools.combinations(public_nets.values(), 2):
        test = paired_top1(first, second)
        only_first = int(np.sum(first.right1 & ~second.right1))
        only_second = int(np.sum(second.right1 & ~first.right1))
        assert test.difference == pytest.approx(first.top1.percent - second.top1.percent)
        assert test.p_value == pytest.approx(binomtest(only_first, only_first + only_second, 0.5).pvalue)
        mirrored = paired_top1(second, first)
        assert (mirrored.difference, mirrored.p_value) == (-test.difference, test.p_value)


def test_depth_helps_in_the_public_nets(public_nets: dict[str, Ranks]) -> None:
    for better, worse in (("vgg13", "vgg11"), ("vgg16", "vgg13"), ("vgg19", "vgg16")):
        test = paired_top1(public_nets[worse], public_nets[better])
        assert test.interval[0] > 0
        assert test.p_value < 1e-3


def test_seeds_that_all_say_the_same_are_no_division_by_zero(root: Path) -> None:
    for seed in range(2):
        for net, wrong in (("A", 592), ("B", 560)):
            make_run(root, net, name=f"{net}-{seed}", seed=seed, posteriors=dense(256, wrong1=wrong, wrong5=0))
    claim = claim_of(root, "B is better than A")
    assert (claim.verdict, claim.spread, claim.p_value) == ("supported", 0.0, 0.0)
    assert claim.interval == (claim.effect, claim.effect)


def test_the_start_from_another_net_is_compared_with_random_weights(root: Path) -> None:
    for seed, cold in ((0, 540), (1, 548)):
        make_run(root, "A", name=f"A-{seed}", seed=seed, posteriors=dense(256, wrong1=600, wrong5=0))
        named = {"seed": seed, "parent": f"A-{seed}"}
        warm = dense(256, wrong1=500, wrong5=0)
        make_run(root, "D", name=f"D-{seed}", posteriors=warm, **named)  # type: ignore[arg-type]
        line = {"setting": "run.parent", "paper": "A at S=256", "run": "none", "why": ""}
        make_run(
            root, "D", name=f"D-cold-{seed}", seed=seed, posteriors=dense(256, wrong1=cold, wrong5=0), departures=[line]
        )
    report = build_report(find_runs([root]))
    (claim,) = report.start_from_parent
    assert claim.effect == pytest.approx((2.0 + 2.4) / 2)
    assert claim.seeds == 2
    assert claim.better == "paper:D-0, paper:D-1: dense, Q = 256"
    assert claim.worse == "paper:D-cold-0, paper:D-cold-1: dense, Q = 256"
    # the paper's way stands for net D, and seeds of the two starts are no seeds of one another
    (depth,) = (claim for claim in report.claims if "D is better than A" in claim.claim)
    assert depth.effect == pytest.approx(5.0)
    means = {tuple(spread.runs): spread.figures["top1"].mean for spread in report.seeds if spread.net == "D"}
    assert means == {
        ("paper:D-0", "paper:D-1"): pytest.approx(25.0),
        ("paper:D-cold-0", "paper:D-cold-1"): pytest.approx(27.2),
    }


def test_another_training_is_no_comparison_of_starts(root: Path) -> None:
    make_run(root, "D", name="warm", parent="A", posteriors=dense(256, wrong1=500, wrong5=0))
    cold = make_run(root, "D", name="cold", posteriors=dense(256, wrong1=540, wrong5=0))
    shorter = (cold.path / "config.yaml").read_text().replace("iterations: 370000", "iterations: 370")
    assert len(build_report(find_runs([root])).start_from_parent) == 1
    cold.write_text("config.yaml", shorter)
    assert build_report(find_runs([root])).start_from_parent == []


def test_two_tests_of_the_same_nets_vary_by_the_images(root: Path) -> None:
    """Two tests of a net share the seeds, so each image counts with its mean over them."""
    gains = []
    for seed, wrong in enumerate((600, 640)):
        results = dense(256, wrong1=wrong, wrong5=0) | {("centre", 256): posteriors_with(wrong + 40, 0, 10 * seed)}
        make_run(root, "A", name=f"A-{seed}", seed=seed, posteriors=results)
        dense_right, centre_right = (
            values.argmax(axis=1) == labels() for values in (results["dense", 256], results["centre", 256])
        )
        gains.append(dense_right.astype(float) - centre_right)
    report = build_report(find_runs([root]))
    (claim,) = report.dense_over_centre
    stated = ttest_1samp(100 * np.mean(gains, axis=0), 0)
    assert (claim.over, claim.seeds, claim.verdict) == ("images", 2, "supported")
    assert claim.effect == pytest.approx(2.0)
    assert claim.spread == pytest.approx(0.0)
    assert claim.interval == pytest.approx(tuple(stated.confidence_interval()), abs=0.01)
    assert claim.p_value == pytest.approx(stated.pvalue, rel=0.05)


def test_a_net_among_those_that_are_fused_is_not_trained_anew(root: Path) -> None:
    for seed in (0, 1):
        for net, wrong, first in (("D", 500, 0), ("E", 480, 800)):
            results = dense(256, 384, 512, wrong1=wrong + 5 * seed, wrong5=0, first=first)
            make_run(root, net, (256, 512), name=f"{net}-{seed}", seed=seed, posteriors=results)
    assert claim_of(root, "D and E together are better than D, dense").over == "images"
    assert claim_of(root, "D at S = [256;512], several Q").over == "images"
