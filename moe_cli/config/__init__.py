"""What can be set. Knows no torch."""
