"""Data sets of Appendix B: PASCAL VOC, Caltech, folders of classes."""
