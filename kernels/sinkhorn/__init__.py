"""Sinkhorn's update between points, without the cost matrix."""
