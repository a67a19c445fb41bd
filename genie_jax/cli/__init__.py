"""The command line; each sub-command parses its flags and makes one call."""
