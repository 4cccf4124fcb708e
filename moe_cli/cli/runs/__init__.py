"""The commands of `moe runs`."""
