"""One model learns."""
