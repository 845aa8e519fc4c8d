"""Evaluation protocols and their runners."""
