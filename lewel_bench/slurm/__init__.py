"""Running jobs on a SLURM cluster: profiles, submission, planning, and what runs inside a job.

Knows keys, folders and commands, and nothing of recipes, records or tables. Its front is `sweep`
(one planning pass) and `control` (what a person asks and does).
"Rule N" in this package means the list in CONTRIBUTING, "The cluster": each was bought by a fault.
"""
