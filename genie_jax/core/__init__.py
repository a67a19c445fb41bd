"""Files, configs and pictures: what knows nothing of world models."""
