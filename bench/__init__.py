"""Benchmarks: workerkit beside other clients. `make bench` runs them; docs/benchmarks.md is what they gave."""
