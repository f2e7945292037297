"""Duals of sparse and quadratic transport between points, without the cost matrix."""
