"""Reading, inferring and encoding a run's data."""
