"""Parameter counts of the scaling study."""
