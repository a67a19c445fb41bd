"""Films of real games, recorded with scripted keys, and labels of them."""
