"""Words that several tables have in common."""

from collections.abc import Mapping

from vggrepro.paper import Measure

FUSED = " + "
"""Between the names of nets and of runs, where a row is of several."""
MEASURES: Mapping[Measure, str] = {"mAP11": "mAP, 11 points", "mAP": "mAP", "recall": "mean class recall"}
"""Of Appendix B."""
OVER_SEEDS = "Mean and standard deviation over seeds:"

NO_SUCH_ROW = "the paper has no such row"
NO_TEST_LABELS = "the labels of the ILSVRC test set were never published, and its server is closed"
OTHER_PAPER = "a figure of another paper"
OTHER_SETTING = "another data set or geometry than the paper's"
