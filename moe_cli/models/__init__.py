"""Model families. Each stands on the sparse core; none sees another."""
