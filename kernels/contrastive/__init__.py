"""Losses over all pairs of two batches, in tiles and around a ring of devices."""
