"""Scaling laws: runs into points, points into a fitted law with intervals, a law into predictions. Knows no torch."""
