"""Platformers: the final models of Genie (section 3)."""
