"""Estimates of a model before it is built: parameters, FLOPs, memory, several GPUs. Imports no torch."""
