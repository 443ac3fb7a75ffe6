"""Checks and cost estimates before GPU hours are spent."""
