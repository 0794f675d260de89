"""Many tasks over one base in memory: requests of different tasks share a batch."""
