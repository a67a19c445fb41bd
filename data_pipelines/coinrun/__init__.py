"""CoinRun (procgen): collecting clips, and a TFDS builder."""
