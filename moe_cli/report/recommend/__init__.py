"""Which configuration to use, and what to run next."""
