"""How well the miniature generates what it is asked for."""
