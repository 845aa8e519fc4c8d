"""Pieces of methods: what several share unchanged, and what is a subject of its own."""
