"""Benchmarks of the sparse layer and of the training step against a dense network and other libraries."""
