"""Records, manifests and loaders; does not import JAX."""
