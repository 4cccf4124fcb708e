"""Benchmarks of the core against a dense network and other libraries."""
