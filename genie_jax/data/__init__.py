"""Records, manifests and loaders; imports no JAX."""
