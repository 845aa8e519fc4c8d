"""Checkpoints that others have trained: opened safely, recognised, and read as a backbone."""
