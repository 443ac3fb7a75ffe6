"""Words that several tables have in common."""

from collections.abc import Iterable, Mapping

from vggrepro.paper import Measure

FUSED = " + "
"""Between the names of nets and of runs, where a row is of several."""
MEASURES: Mapping[Measure, str] = {"mAP11": "mAP, 11 points", "mAP": "mAP", "recall": "mean class recall"}
"""Of Appendix B."""

NO_SUCH_ROW = "the paper has no such row"
NO_TEST_LABELS = "the labels of the ILSVRC test set were never published, and its server is closed"
OTHER_PAPER = "a figure of another paper"
OTHER_SETTING = "another data set or geometry than the paper's"


def fused(texts: Iterable[str], *, alike_once: bool = False) -> str:
    """What a row says of several nets, in their order; what is alike, if so wanted, once."""
    return FUSED.join(dict.fromkeys(texts) if alike_once else texts)


def Q_text(Q: Iterable[int]) -> str:
    """The test scales of a net, px."""
    return ", ".join(map(str, Q))
