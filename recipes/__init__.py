"""Programs that make the shipped weights."""
