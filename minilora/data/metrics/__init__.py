"""Scores: of classes and numbers, and of texts."""
