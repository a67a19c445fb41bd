"""Running a world outside of JAX's Python models."""
