"""Model parameters as bytes: trees, lazy arrays, files, int8, placement."""
