"""Comparison of many runs: reads run folders into rows, seeds into intervals, and rows into tables. Imports no torch."""
