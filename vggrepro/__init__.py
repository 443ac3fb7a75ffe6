"""vggrepro: the executable form of Simonyan & Zisserman, arXiv 1409.1556."""

__version__ = "0.1.0"
