"""A world in PyTorch."""
