"""The revision of the scenes, apart from what draws them: keys ask for it, and need no NumPy."""

REVISION = 4  # raise it when a byte of any file changes
