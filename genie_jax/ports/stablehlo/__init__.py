"""A world as StableHLO programs."""
