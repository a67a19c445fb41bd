"""Metrics of reconstruction, prediction and controllability."""
