"""Searching for the best mesh and memory policy."""
