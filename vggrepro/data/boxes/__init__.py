"""Boxes of objects in images (Appendix A): annotations and the file that is made of them."""
