"""MaskGIT refinement and rollouts over a sliding window."""
