"""Semantic segmentation with a fully convolutional network."""
