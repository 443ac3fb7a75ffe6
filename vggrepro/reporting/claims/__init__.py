"""The claims of the paper as statistical tests."""
