"""A table with its measured values: cells, extra rows, missing cells."""
