"""Self-supervised pre-training: methods, recipes, data and the one training loop."""
