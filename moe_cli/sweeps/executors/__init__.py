"""Executors of a sweep's runs: this machine, Ray, Slurm."""
