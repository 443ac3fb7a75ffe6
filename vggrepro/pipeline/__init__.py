"""Work of the commands on the stages of a graph, and on nets by name."""
