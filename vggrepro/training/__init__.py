"""Training of a stage from its configuration to its final checkpoint (Section 3.1)."""
