"""Fixtures of the tests of worlds."""

from tests.fixtures.tiny_folders import clips, models, parts

__all__ = ["clips", "models", "parts"]
