"""The figures of the paper as data, and how figures are drawn."""
