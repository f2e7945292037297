"""Pallas kernels and their references, imported as tinker.kernels."""
