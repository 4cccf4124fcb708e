"""Model families. Each is built on the sparse core; none imports another's model."""
