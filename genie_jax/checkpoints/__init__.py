"""Saving, restoring, reading and verifying training checkpoints."""
