"""Configs, each with its command, source and measured result."""
