"""Settings of a run, and parsing of recipes."""
