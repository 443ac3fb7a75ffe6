"""Submission of a configuration through SLURM, and the programs inside a job."""
