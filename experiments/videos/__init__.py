"""Configs of worlds from a folder of films (`genie world`)."""
