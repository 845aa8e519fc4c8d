"""LEWEL and its baselines: pre-training, evaluation, the paper's tables with measured numbers."""

__version__ = "0.1.0"
