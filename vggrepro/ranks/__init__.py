"""Distributed training: topology, process group, collectives and the watch over ranks."""
