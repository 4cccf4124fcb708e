"""What computes the chosen experts, each equal to `reference`."""
