"""Storage of model parameters: trees, lazy arrays, files, int8, placement."""
