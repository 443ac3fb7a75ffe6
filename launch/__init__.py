"""From a configuration to jobs: submission through SLURM, and what runs inside a job."""
