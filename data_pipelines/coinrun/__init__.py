"""CoinRun: the licences of its assets, and a TFDS builder."""
