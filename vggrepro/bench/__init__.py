"""Measured claims: the verbs of `vggrepro bench`; all but `profile` put ours beside the usual way, interleaved."""
