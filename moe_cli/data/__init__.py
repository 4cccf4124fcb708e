"""Training data: text, tokens, images and ratings, read from their sources and converted to arrays on disk."""
