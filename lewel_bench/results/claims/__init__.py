"""The claims of the paper: what each compares, and what the records say of it."""
