"""The command line: flags, config, one call each."""
