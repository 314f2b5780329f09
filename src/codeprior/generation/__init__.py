"""Generation: logits to a token, a token to a sequence, a sequence to an image."""
