"""Texts that several tables share."""

from collections.abc import Iterable, Mapping

from vggrepro.paper import Measure

FUSED = " + "
"""Separator of the names of nets and runs in a row of several."""
MEASURES: Mapping[Measure, str] = {"mAP11": "mAP, 11 points", "mAP": "mAP", "recall": "mean class recall"}
"""Scores of Appendix B by their setting."""

NO_SUCH_ROW = "the paper has no such row"
NO_TEST_LABELS = "the labels of the ILSVRC test set were never published, and its server is closed"
OTHER_PAPER = "a figure of another paper"
OTHER_SETTING = "another data set or geometry than the paper's"


def fused(texts: Iterable[str], *, alike_once: bool = False) -> str:
    """Joins the texts of several nets in order; with `alike_once`, equal texts appear once."""
    return FUSED.join(dict.fromkeys(texts) if alike_once else texts)


def Q_text(Q: Iterable[int]) -> str:
    """Formats the test scales of a net, px."""
    return ", ".join(map(str, Q))
