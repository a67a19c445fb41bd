"""Clip folders of other projects: `genie data import`."""
