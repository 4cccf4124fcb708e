"""What is learned from: texts, tokens, images and ratings, from where they lie to arrays on disk."""
