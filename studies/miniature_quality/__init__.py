"""How well the miniature draws what it is asked for."""
