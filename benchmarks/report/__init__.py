"""Tables of the docs, written from the results."""
