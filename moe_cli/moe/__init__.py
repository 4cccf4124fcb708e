"""The sparse core. Knows no model, no data, no file and no config loader."""
