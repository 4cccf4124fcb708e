"""What a model costs before it is built: parameters, FLOPs, memory, several GPUs. Knows no torch."""
