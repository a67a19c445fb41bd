"""World bundles and what loads them."""
