"""Logical axes, meshes and hosts."""
