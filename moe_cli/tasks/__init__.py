"""Data in, loss and metrics out."""
