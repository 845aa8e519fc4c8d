"""Running jobs on a SLURM cluster."""
