"""Playable worlds: their folder, export, download and environments."""
