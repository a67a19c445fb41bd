"""One train step, one loop and one checkpoint path for all stages."""
