"""One module per command of `lewel-bench`, each named for it."""
