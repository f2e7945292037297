"""Reductions over the rows of a matrix product that is never held."""
