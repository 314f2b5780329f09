"""Judging images: statistics of features, scores, feature networks. Knows images, not models."""
