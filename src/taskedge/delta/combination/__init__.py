"""Task arithmetic on deltas: add, merge and subtract trained changes of one base, by index."""
