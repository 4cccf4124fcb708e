"""Runs as models of lm-evaluation-harness, and small tasks for it. `lm_eval` is imported in this package alone."""
