"""Several tasks trained at once over one base: shared entries, entries of each task, and gates that choose."""
