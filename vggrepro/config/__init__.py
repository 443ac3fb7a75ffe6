"""The settings of a run, and the reading of recipes."""
