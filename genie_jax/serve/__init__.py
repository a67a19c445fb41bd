"""Playing a world in a browser: server, protocol and page."""
