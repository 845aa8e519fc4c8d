"""Running jobs on a SLURM cluster: profiles, submission, planning, and the code inside a SLURM job.

The package knows keys, folders and commands, but no recipes, records or tables. Its interface is
`sweep` (one planning pass), `survey` (states, verdicts and logs) and `actions` (cancel and retry).
"Rule N" in this package refers to the list in CONTRIBUTING, "The cluster".
"""
