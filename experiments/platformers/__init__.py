"""Platformers: the final model of Genie (section 3)."""
