"""A device of a cooperative run: local training on rows that never leave it."""
