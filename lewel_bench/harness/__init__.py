"""Verbs, plans and jobs: what turns a table into runs."""
