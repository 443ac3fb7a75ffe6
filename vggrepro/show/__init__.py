"""The browser page of `vggrepro show`: what dense evaluation of one net sees in one image (Sections 3.2, 4.2)."""
