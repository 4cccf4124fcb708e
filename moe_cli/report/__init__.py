"""Comparison of many runs: reads run folders into rows, groups seeds, and builds tables. Imports no torch."""
