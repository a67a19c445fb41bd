"""What the tests of worlds share."""

from tests.fixtures.tiny_folders import clips, models, parts

__all__ = ["clips", "models", "parts"]
