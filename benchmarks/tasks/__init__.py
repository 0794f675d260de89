"""Every kind of task on real data."""
