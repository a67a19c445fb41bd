"""CoinRun: the case study of Genie (appendix F), and sizes for a laptop."""
