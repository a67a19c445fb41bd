"""Search for the fastest mesh and remat policy that fit."""
