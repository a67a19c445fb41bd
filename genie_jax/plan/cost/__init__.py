"""Estimates of step time: compute, kernels and collectives."""
