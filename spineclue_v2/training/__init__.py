"""The one training loop that every stage uses."""
