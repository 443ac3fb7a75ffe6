"""The loop, the schedule, and one stage from its configuration to its final checkpoint (Section 3.1)."""
