"""Back ends that compute the chosen experts, each equal to `reference`."""
