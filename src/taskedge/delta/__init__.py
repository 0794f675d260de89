"""The trained change of a model: extract, save, load, apply, revert, export."""
