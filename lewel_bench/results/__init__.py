"""Records of what was measured, the tables of the paper, and how they are shown."""
