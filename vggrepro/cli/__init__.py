"""The `vggrepro` command, one function per verb. Heavy packages are imported inside the functions."""
