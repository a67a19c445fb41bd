"""CoinRun (procgen): collector of clips, and a TFDS builder."""
