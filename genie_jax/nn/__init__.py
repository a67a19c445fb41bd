"""Layers that the three models share."""
