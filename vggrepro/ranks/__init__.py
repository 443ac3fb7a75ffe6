"""How the ranks of a run live together."""
