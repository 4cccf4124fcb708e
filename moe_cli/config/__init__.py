"""The settings of a run and of a sweep. Knows no torch."""
