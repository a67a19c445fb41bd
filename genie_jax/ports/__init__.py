"""Ports that run worlds without the JAX models of this package."""
