"""CoinRun: the case study of Genie (appendix F), also in laptop sizes."""
