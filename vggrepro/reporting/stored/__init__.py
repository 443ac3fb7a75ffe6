"""Stored results of runs and of committed evidence, as reports read them."""
