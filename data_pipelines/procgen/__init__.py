"""procgen's games: collecting clips of them under several policies."""
