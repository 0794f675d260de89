"""The trained change as a file: extract, save, load, apply, revert."""
