"""Encoding clips as token records."""
