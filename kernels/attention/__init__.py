"""Softmax attention that never holds its scores."""
