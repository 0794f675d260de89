"""Exports to and imports from formats of other programs."""
