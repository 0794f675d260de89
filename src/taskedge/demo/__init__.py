"""The demo, and the models and data that it, the tests and the benchmarks use."""
