"""What a command does to the stages of a graph."""
