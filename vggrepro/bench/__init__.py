"""Measured claims: each verb of `vggrepro bench` puts ours beside the usual way, interleaved in one run."""
