"""Benchmarks, a folder a question; ``python -m benchmarks`` lists them (benchmarks/README.md)."""
