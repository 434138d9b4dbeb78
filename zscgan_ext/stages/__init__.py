"""A run: preparing it, and its stages one after the other."""
