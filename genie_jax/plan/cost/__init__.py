"""Estimated step time: compute, kernels and collectives."""
