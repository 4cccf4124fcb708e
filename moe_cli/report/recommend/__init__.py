"""Recommendation of a configuration and of the next sweep."""
