"""The coordinator of a cooperative run: rounds, dispatch, aggregation, versions and the run folder."""
