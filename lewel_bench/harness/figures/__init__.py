"""Data of the figures."""
