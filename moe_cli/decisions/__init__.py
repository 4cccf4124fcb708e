"""Answers "which configuration of a space is best?" with a budget of runs: screening, learning rates, confirmation."""
