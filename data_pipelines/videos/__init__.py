"""Clips from anyone's films: `genie data videos`."""
