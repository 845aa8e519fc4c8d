"""Running jobs on a SLURM cluster: profiles, submission, planning, and what runs inside a job.

Knows keys, folders and commands, and nothing of recipes, records or tables. `sweep` is its front.
"Rule N" in this package means the list in CONTRIBUTING, "The cluster": each was bought by a fault.
"""
