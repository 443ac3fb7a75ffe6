"""Other data sets (Appendix B): VOC, Caltech, folders of classes."""
