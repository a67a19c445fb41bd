"""Configs, each with its command, its source and its measured result."""
