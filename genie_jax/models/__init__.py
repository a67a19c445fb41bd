"""Tokenizer, latent action model and dynamics."""
