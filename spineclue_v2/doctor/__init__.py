"""Is this installation fit to work, and if not, what to do about it."""
