"""Boxes of objects in images (Appendix A): reading annotations, and storing boxes."""
