"""The Python API: train() and sweep(), exported by `moe_cli`."""
